//! What a person reads while a job waits.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
mod world;

use std::time::Duration;

use hatchery_common::{
    availability::{Away, AwayReason, LocalTime},
    device::{Device, DeviceKind},
    id::JobId,
    node::{Inventory, NodeMode, TrainerState},
    recipe::DeviceWishes,
    session::{AttemptPhase, AttemptReport},
    time::{BootTime, Timestamp},
    trainer::{Ending, FailureCause, Progress},
};
use hatchery_scheduler::{Cancel, EndAttempt, Observed, RemoveNode, SetInventory, SetNodeMode, Wait};
use world::{LEASE, World, name};

/// FLOP/s at which the small test model makes so many steps in a second.
fn flops(steps_per_sec: f64) -> f64 {
    let spec = world::spec(&world::dataset(100), 1);
    steps_per_sec * spec.model.flops_per_step(spec.train.raw().batch, spec.train.raw().block)
}

fn cuda() -> DeviceWishes {
    DeviceWishes { kinds: vec![DeviceKind::Cuda], ..DeviceWishes::default() }
}

fn sentence(world: &mut World, job: JobId) -> String {
    let wait: Wait = world.plan().waits[&job].clone();
    let text = serde_json::to_string(&wait).unwrap();
    assert!(text.contains(wait.code()), "{text}");
    assert_eq!(serde_json::from_str::<Wait>(&text).unwrap(), wait);
    wait.to_string()
}

#[test]
fn with_no_nodes() {
    let mut world = World::new();
    let job = world.submit(10, DeviceWishes::default());
    assert_eq!(
        sentence(&mut world, job),
        "waiting: no node has joined yet; create a join string with `hatchery token create`"
    );
}

#[test]
fn with_no_such_device() {
    let mut world = World::new();
    world.join("mac", &[(Device::MPS, None), (Device::CPU, None)]);
    let bare = world.join("arm-c", &[]);
    let trainer = TrainerState::Missing { why: "libtorch is not installed; run `cargo xtask setup`".into() };
    let inventory = Box::new(Inventory { trainer, ..Inventory::default() });
    world.ask(SetInventory { node: bare, inventory }).unwrap();
    let wishes = DeviceWishes {
        kinds: vec![DeviceKind::Cuda],
        nodes: vec![name("gpu-a"), name("gpu-b")],
        labels: [(name("room"), name("attic"))].into(),
        ..DeviceWishes::default()
    };
    let job = world.submit(10, wishes);
    assert_eq!(
        sentence(&mut world, job),
        "waiting: no node has cuda on gpu-a or gpu-b with room=attic; the fleet has arm-c, which cannot \
         train (libtorch is not installed; run `cargo xtask setup`); mac with mps and cpu"
    );
    let mut world = World::new();
    for number in 0..10 {
        world.join(&format!("n{number}"), &[]);
    }
    let job = world.submit(10, DeviceWishes::default());
    let text = sentence(&mut world, job);
    assert!(
        text.starts_with(
            "waiting: no node has a device that can train; the fleet has n0 without devices; n1"
        ),
        "{text}"
    );
    assert!(text.ends_with("n7 without devices; 2 more nodes"), "{text}");
}

#[test]
fn with_the_owner_there() {
    let mut world = World::new();
    let [one, two] = ["workstation", "laptop"].map(|name| world.join(name, &[(Device::cuda(0), None)]));
    let closed = world.join("server", &[(Device::cuda(0), None)]);
    world.ask(SetNodeMode { node: closed, mode: NodeMode::Cordoned, by: name("ann") }).unwrap();
    let job = world.submit(10, DeviceWishes { nodes: vec![name("workstation"), name("server")], ..cuda() });
    let both = world.submit(10, cuda());
    let takes = |world: &mut World, node, reason, until| {
        world.observed.nodes.get_mut(&node).unwrap().report.away = Some(Away { reason, until });
    };
    takes(&mut world, one, AwayReason::OwnerActive, None);
    // 2024-02-29 12:34 UTC, a Thursday.
    let until = LocalTime { at: Timestamp(1_709_210_096_000), utc_offset_secs: 3600 };
    takes(&mut world, two, AwayReason::OutsideHours, Some(until));
    assert_eq!(
        sentence(&mut world, job),
        "waiting: workstation, which could run this, is away: its owner is using it"
    );
    assert_eq!(
        sentence(&mut world, both),
        "waiting: of the nodes that could run this, laptop is away (outside its hours, until Thu 13:34 (UTC+01:00)) \
         and workstation is away (its owner is using it)"
    );
}

#[test]
fn with_a_node_that_has_only_just_dialled() {
    let mut world = World::new();
    let node = world.join("workstation", &[(Device::CPU, None)]);
    let job = world.submit(10, DeviceWishes::default());
    world.observed.nodes.get_mut(&node).unwrap().last_heard = BootTime::default();
    assert_eq!(world.plan().waits[&job].code(), "node_unknown", "its first report may say that it is away");
    world.hear(node);
    assert_eq!(world.plan().events.len(), 1);
}

#[test]
fn with_the_node_away() {
    let mut world = World::new();
    let (one, two) =
        (world.join("gpu-a", &[(Device::cuda(0), None)]), world.join("gpu-b", &[(Device::cuda(0), None)]));
    world.join("cpu-b", &[(Device::CPU, None)]);
    world.observed.nodes.get_mut(&one).unwrap().connected = false;
    world.observed.nodes.get_mut(&two).unwrap().connected = false;
    let job = world.submit(10, cuda());
    assert_eq!(
        sentence(&mut world, job),
        "waiting: gpu-a and gpu-b, which could run this, are not connected"
    );
    world.ask(RemoveNode { node: two, lease: world::LEASE }).unwrap();
    assert_eq!(sentence(&mut world, job), "waiting: gpu-a, which could run this, is not connected");
}

#[test]
fn after_a_restart() {
    let mut world = World::new();
    world.join("gpu-a", &[(Device::cuda(0), Some(flops(10.0)))]);
    let cpu = world.join("cpu-b", &[(Device::CPU, Some(flops(1.0)))]);
    world.observed = Observed::new(world.now.boot, LEASE);
    world.advance(Duration::from_secs(3));
    world.hear(cpu);
    let job = world.submit(600, DeviceWishes::default());
    assert_eq!(
        sentence(&mut world, job),
        "waiting: gpu-a has not reconnected since the coordinator started and has another 12 s to do so; \
         starting on cpu of cpu-b now would finish 9 min later"
    );
    world.advance(Duration::from_secs(12));
    world.hear(cpu);
    assert_eq!(world.plan().events.len(), 1, "then it takes what there is");
}

#[test]
fn for_a_busy_device() {
    let mut world = World::new();
    let gpu = world.join("gpu-a", &[(Device::cuda(0), Some(flops(10.0)))]);
    let first = world.submit(100_000, cuda());
    world.plan();
    world.join("cpu-b", &[(Device::CPU, Some(flops(1.0)))]);
    let report = |step, steps_per_sec| AttemptReport {
        id: hatchery_common::id::AttemptId { job: first, epoch: hatchery_common::id::Epoch(1) },
        phase: AttemptPhase::Running,
        progress: Some(Progress { step, steps_per_sec, ..Progress::default() }),
        validation: None,
        running_on: None,
    };
    world.observed.nodes.get_mut(&gpu).unwrap().report.attempts = vec![report(98_200, 10.0)];
    let job = world.submit(2_933, DeviceWishes::default());
    assert_eq!(
        sentence(&mut world, job),
        "waiting: cuda:0 of gpu-a is busy for about another 3 min; starting on cpu of cpu-b now would \
         finish 41 min later"
    );
    let next = world.submit(10_000, cuda());
    let last = world.submit(10_000, cuda());
    assert_eq!(
        sentence(&mut world, next),
        "waiting: behind 1 job for cuda:0 of gpu-a, which is busy for about another 8 min"
    );
    assert_eq!(
        sentence(&mut world, last),
        "waiting: behind 2 jobs for cuda:0 of gpu-a, which is busy for about another 25 min"
    );
    world.observed.nodes.get_mut(&gpu).unwrap().report.attempts = vec![report(98_200, 0.0001)];
    assert_eq!(sentence(&mut world, next), "waiting: cuda:0 of gpu-a is busy for about another 208 d 8 h");
    world.ask(Cancel { job: first, by: name("ann") }).unwrap();
    assert!(
        sentence(&mut world, next).contains("is busy for about another 10 s")
            || world.job(job).lease.is_none()
    );
}

#[test]
fn for_a_device_of_unknown_speed() {
    let mut world = World::new();
    world.join("gpu-a", &[(Device::cuda(0), None)]);
    world.submit(10_000, cuda());
    world.plan();
    let job = world.submit(10, cuda());
    assert_eq!(
        sentence(&mut world, job),
        "waiting: cuda:0 of gpu-a is busy",
        "a guess is not told as knowledge"
    );
}

#[test]
fn while_it_backs_off() {
    let mut world = World::new();
    let node = world.join("gpu-a", &[(Device::cuda(0), None)]);
    let job = world.submit(10_000, cuda());
    world.plan();
    let ending = Ending::Failed { cause: FailureCause::Crashed, message: "signal 11".into() };
    let epoch = world.job(job).epoch;
    world.ask(EndAttempt { node, job, epoch, ending, last_output: String::new() }).unwrap();
    assert_eq!(sentence(&mut world, job), "waiting: retries in 2 s, because attempt 1 crashed on gpu-a");
}
