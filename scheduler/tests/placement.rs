//! Where jobs go, in which order, and when they move.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
mod world;

use std::time::Duration;

use hatchery_common::{
    availability::{Away, AwayReason},
    device::{Device, DeviceKind},
    id::{JobId, NodeId},
    node::NodeMode,
    placement::{Known, Verdict},
    recipe::{DeviceWishes, Priority, RawTrainSpec, TrainSpec},
    session::{ReplicaReport, ReplicaState},
    trainer::{Ending, FailureCause},
};
use hatchery_scheduler::{
    Cancel, CommitCheckpoint, EndAttempt, Event, HandOver, JobPhase, LeaseEnd, Pause, Policy, Requeue,
    Resume, SetNodeMode, SetPriority, Wait, What, assignment, explain,
};
use world::{LEASE, World, checkpoint, name};

const MINUTE: Duration = Duration::from_mins(1);

/// FLOP/s at which the small test model makes so many steps in a second.
fn flops(steps_per_sec: f64) -> f64 {
    let spec = world::spec(&world::dataset(100), 1);
    steps_per_sec * spec.model.flops_per_step(spec.train.raw().batch, spec.train.raw().block)
}

/// The seed pair and a small processor: 27.8, 3.09 and 0.3 steps/s.
fn trio() -> (World, [NodeId; 3]) {
    let mut world = World::new();
    let gpu = world.join("gpu-a", &[(Device::cuda(0), Some(flops(27.8)))]);
    let mac = world.join("mac", &[(Device::MPS, Some(flops(3.09)))]);
    let cpu = world.join("cpu-b", &[(Device::CPU, Some(flops(0.3)))]);
    (world, [gpu, mac, cpu])
}

fn any() -> DeviceWishes {
    DeviceWishes::default()
}

fn node_of(world: &World, job: JobId) -> Option<NodeId> {
    world.job(job).lease.as_ref().map(|lease| lease.node)
}

fn end(world: &mut World, job: JobId, ending: Ending) {
    let lease = world.job(job).lease.clone().unwrap();
    let epoch = world.job(job).epoch;
    let last_output = String::new();
    world.ask(EndAttempt { node: lease.node, job, epoch, ending, last_output }).unwrap();
}

fn commit(world: &mut World, job: JobId, step: u64) {
    let manifest = Box::new(checkpoint(world.job(job), world.job(job).epoch, step));
    let node = node_of(world, job).unwrap();
    world.ask(CommitCheckpoint { node, manifest, self_test: None }).unwrap();
}

fn priority(points: u8) -> Priority {
    Priority::new(points).unwrap()
}

#[test]
fn a_job_waits_for_the_gpu_that_frees_soon_and_takes_the_cpu_where_that_ends_first() {
    let (mut world, [gpu, mac, cpu]) = trio();
    let first = world.submit(27_800, any());
    world.plan();
    assert_eq!(node_of(&world, first), Some(gpu));
    // 17 minutes on the GPU, the line before it included; 41 on the Mac.
    let waits = world.submit(2_000, DeviceWishes { kinds: vec![DeviceKind::Cuda, DeviceKind::Mps], ..any() });
    world.plan();
    assert_eq!(node_of(&world, waits), Some(mac), "10.8 min beat 17");
    // Half a minute on the processor, against minutes of waiting.
    let short = world.submit(10, any());
    world.plan();
    assert_eq!(node_of(&world, short), Some(cpu));
    let long = world.submit(3_000, any());
    let plan = world.plan();
    let Wait::Busy { node, instead, .. } = &plan.waits[&long] else { panic!("{:?}", plan.waits) };
    assert_eq!((node.as_str(), instead), ("gpu-a", &None), "GPU: 16.7 + 1.8 min; Mac: 10.8 + 16 min");
}

#[test]
fn what_was_measured_counts_more_than_what_was_calibrated() {
    let (mut world, [gpu, mac, _]) = trio();
    let first = world.submit(100_000, any());
    world.plan();
    assert_eq!(node_of(&world, first), Some(gpu));
    // The card is a hundred times slower than it should be.
    world.advance(Duration::from_secs(11));
    world.report(|_| (3, 0.278));
    let measured = world.plan().events;
    assert!(matches!(measured[0].what, What::SpeedMeasured { .. }), "{measured:?}");
    world.advance(2 * MINUTE);
    world.report(|_| (30, 0.278));
    let moved = world.plan().events;
    let [Event { what: What::HandOverRequested { job, why: HandOver::Migrate { to, .. }, .. }, .. }] =
        &moved[..]
    else {
        panic!("{moved:?}")
    };
    assert_eq!((*job, *to), (first, mac), "it moves to where it ends first");
    assert!(assignment(&world.cluster, gpu, LEASE).attempts[0].stop);
    commit(&mut world, first, 33);
    end(&mut world, first, Ending::Stopped);
    assert!(matches!(
        world.batches.last().unwrap()[0].what,
        What::LeaseEnded { why: LeaseEnd::HandedOver, .. }
    ));
    world.plan();
    assert_eq!(node_of(&world, first), Some(mac));
    assert_eq!(world.job(first).lease.as_ref().unwrap().resume_from, world.job(first).checkpoint);
    let second = world.submit(1000, DeviceWishes { kinds: vec![DeviceKind::Cuda], ..any() });
    let told = explain(&world.cluster, &world.observed, world.now, second);
    let card = told.iter().find(|candidate| candidate.node == gpu).unwrap();
    assert_eq!(card.known, Known::Measured);
    assert!((card.steps_per_sec - 0.278).abs() < 1e-9, "{card:?}");
}

#[test]
fn a_run_moves_only_if_that_pays_and_only_where_nobody_waits() {
    let (mut world, [gpu, mac, _]) = trio();
    let blocker = world.submit(278_000, any());
    world.plan();
    let job = world.submit(30_900, any());
    world.plan();
    assert_eq!((node_of(&world, blocker), node_of(&world, job)), (Some(gpu), Some(mac)));
    world.advance(5 * MINUTE);
    world.report(|job| if job.spec.train.raw().steps == 278_000 { (277_999, 27.8) } else { (927, 3.09) });
    world.plan();
    commit(&mut world, blocker, 278_000);
    end(&mut world, blocker, Ending::Completed);
    let other = world.submit(100_000, any());
    let events = world.plan().events;
    assert_eq!(node_of(&world, other), Some(gpu), "who waits comes before who runs");
    assert!(!events.iter().any(|event| matches!(&event.what, What::HandOverRequested { .. })), "{events:?}");
    commit(&mut world, other, 100_000);
    end(&mut world, other, Ending::Completed);
    let events = world.plan().events;
    let moves = |event: &Event| matches!(&event.what, What::HandOverRequested { why: HandOver::Migrate { to, .. }, .. } if *to == gpu);
    assert!(events.iter().any(moves), "{events:?}");
}

#[test]
fn a_job_of_higher_priority_pushes_one_off_through_a_checkpoint() {
    let mut world = World::new();
    let gpu = world.join("gpu-a", &[(Device::cuda(0), Some(flops(10.0)))]);
    let low = world.submit(36_000, any());
    world.plan();
    let equal = world.submit(600, any());
    assert_eq!(world.plan().events, [], "an equal one waits");
    let high = world.submit_as("bob", 600, |spec| spec.queue.priority = priority(80));
    assert_eq!(world.plan().events, [], "it has only just begun");
    world.advance(Duration::from_secs(10));
    world.report(|_| (100, 10.0));
    let events = world.plan().events;
    let [.., Event { what: What::HandOverRequested { job, why: HandOver::Preempt { by }, .. }, .. }] =
        &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((*job, *by), (low, high));
    commit(&mut world, low, 100);
    end(&mut world, low, Ending::Stopped);
    world.plan();
    assert_eq!(node_of(&world, high), Some(gpu));
    assert_eq!((&world.job(low).phase, world.job(low).checkpoint_step), (&JobPhase::Queued, 100));
    assert_eq!(world.job(low).failures, [], "nobody is to blame");
    commit(&mut world, high, 600);
    end(&mut world, high, Ending::Completed);
    world.plan();
    assert_eq!(node_of(&world, equal), Some(gpu), "the shorter of two equals first");
    // What ends soon anyway is let be.
    world.advance(MINUTE);
    world.report(|_| (590, 10.0));
    world.plan();
    world.submit_as("bob", 600, |spec| spec.queue.priority = priority(100));
    assert_eq!(world.plan().events, []);
}

#[test]
fn pause_resume_requeue_and_priority() {
    let (mut world, [gpu, mac, _]) = trio();
    let by = || name("ann");
    let job = world.submit(10_000, DeviceWishes { kinds: vec![DeviceKind::Cuda], ..any() });
    world.ask(Pause { job, by: by() }).unwrap();
    assert_eq!(world.job(job).phase, JobPhase::Paused);
    assert_eq!(world.plan().events, [], "it gets no device");
    world.ask(Resume { job, by: by() }).unwrap();
    world.plan();
    assert_eq!(node_of(&world, job), Some(gpu));

    world.ask(Pause { job, by: by() }).unwrap();
    assert!(assignment(&world.cluster, gpu, LEASE).attempts[0].stop);
    commit(&mut world, job, 77);
    end(&mut world, job, Ending::Stopped);
    assert_eq!((&world.job(job).phase, world.job(job).checkpoint_step), (&JobPhase::Paused, 77));
    world.ask(Resume { job, by: by() }).unwrap();
    world.plan();
    assert_eq!(node_of(&world, job), Some(gpu));

    // Somebody changes their mind while the trainer is stopping.
    world.ask(Pause { job, by: by() }).unwrap();
    world.ask(Resume { job, by: by() }).unwrap();
    end(&mut world, job, Ending::Stopped);
    assert_eq!(world.job(job).phase, JobPhase::Queued);
    world.plan();
    world.ask(Requeue { job, by: by() }).unwrap();
    let urgent = world.submit(10_000, DeviceWishes { kinds: vec![DeviceKind::Cuda], ..any() });
    world.ask(SetPriority { job: urgent, priority: priority(70), by: by() }).unwrap();
    end(&mut world, job, Ending::Stopped);
    world.plan();
    assert_eq!((node_of(&world, urgent), node_of(&world, job)), (Some(gpu), None));

    world.ask(Pause { job: urgent, by: by() }).unwrap();
    world.advance(LEASE);
    world.hear(mac);
    world.plan();
    assert_eq!(world.job(urgent).phase, JobPhase::Paused, "also when its node is lost meanwhile");
    world.ask(Cancel { job: urgent, by: by() }).unwrap();
    assert_eq!(world.job(urgent).phase, JobPhase::Cancelled);
    assert!(world.ask(Resume { job: urgent, by: by() }).is_err());
}

#[test]
fn a_node_whose_owner_needs_it_empties_at_once_and_is_given_work_when_it_is_back() {
    let (mut world, [gpu, mac, cpu]) = trio();
    let job = world.submit(10_000, any());
    world.plan();
    assert_eq!(node_of(&world, job), Some(gpu));
    let owner = |world: &mut World, here: bool| {
        let away = Away { reason: AwayReason::OwnerActive, until: None };
        world.hear(gpu);
        world.observed.nodes.get_mut(&gpu).unwrap().report.away = here.then_some(away);
    };
    owner(&mut world, true);
    let reason = AwayReason::OwnerActive;
    let why = HandOver::NodeAway { reason };
    assert_eq!(world.plan().events, [What::HandOverRequested { job, why }.at(world.now.wall)]);
    let only = world.submit(5, DeviceWishes { kinds: vec![DeviceKind::Cuda], ..any() });
    assert_eq!(world.plan().waits[&only].code(), "node_away");
    let verdict = |world: &World, job, node| {
        let candidates = explain(&world.cluster, &world.observed, world.now, job);
        let found = candidates.into_iter().find(|candidate| candidate.node == node).unwrap();
        assert_eq!((found.start_in_ms, found.end_in_ms), (None, None));
        (found.verdict, found.why)
    };
    assert_eq!(verdict(&world, only, gpu), (Verdict::NodeAway, "away: its owner is using it".to_owned()));

    // It goes on elsewhere, from its checkpoint; nobody is to blame.
    commit(&mut world, job, 100);
    end(&mut world, job, Ending::NodeAway);
    let ended = world.batches.last().unwrap();
    assert!(matches!(
        ended[..],
        [Event { what: What::LeaseEnded { why: LeaseEnd::HandedOver, not_before: None, .. }, .. }]
    ));
    world.plan();
    let place = node_of(&world, job);
    assert!(place == Some(mac) || place == Some(cpu), "{place:?}");
    assert_eq!(world.job(job).lease.as_ref().unwrap().resume_from, world.job(job).checkpoint);
    assert_eq!(world.job(job).failures, []);

    owner(&mut world, false);
    world.plan();
    assert_eq!(node_of(&world, only), Some(gpu));
}

#[test]
fn an_attempt_that_its_node_ended_by_itself_counts_as_handed_over_whatever_was_asked_of_it() {
    let (mut world, [gpu, ..]) = trio();
    let [job, paused, cancelled] = [DeviceKind::Cuda, DeviceKind::Mps, DeviceKind::Cpu]
        .map(|kind| world.submit(10_000, DeviceWishes { kinds: vec![kind], ..any() }));
    world.plan();
    assert_eq!(node_of(&world, job), Some(gpu));
    // It was away and is back, all while nobody heard of it.
    end(&mut world, job, Ending::NodeAway);
    let ended = world.batches.last().unwrap();
    assert!(
        matches!(ended[..], [Event { what: What::LeaseEnded { why: LeaseEnd::HandedOver, .. }, .. }]),
        "{ended:?}"
    );
    world.plan();
    assert_eq!((node_of(&world, job), world.job(job).epoch.0), (Some(gpu), 2));
    let by = || name("ann");
    world.ask(Pause { job: paused, by: by() }).unwrap();
    end(&mut world, paused, Ending::NodeAway);
    assert_eq!(world.job(paused).phase, JobPhase::Paused);
    world.ask(Cancel { job: cancelled, by: by() }).unwrap();
    end(&mut world, cancelled, Ending::NodeAway);
    assert_eq!(world.job(cancelled).phase, JobPhase::Cancelled);
}

#[test]
fn a_drained_node_empties_and_a_cordoned_one_keeps_what_it_has() {
    let (mut world, [gpu, mac, cpu]) = trio();
    let job = world.submit(10_000, any());
    world.plan();
    let set = |world: &mut World, node, mode| {
        world.ask(SetNodeMode { node, mode, by: name("ann") }).unwrap();
    };
    set(&mut world, gpu, NodeMode::Cordoned);
    assert_eq!(world.plan().events, []);
    let second = world.submit(100, any());
    world.plan();
    assert_eq!(node_of(&world, second), Some(mac));
    set(&mut world, gpu, NodeMode::Draining);
    let events = world.plan().events;
    assert!(
        matches!(events[..], [Event { what: What::HandOverRequested { why: HandOver::Drain, .. }, .. }]),
        "{events:?}"
    );
    end(&mut world, job, Ending::Stopped);
    let plan = world.plan();
    assert!(matches!(plan.waits[&job], Wait::Busy { .. }) || node_of(&world, job) == Some(cpu));
    let only = world.submit(5, DeviceWishes { kinds: vec![DeviceKind::Cuda], ..any() });
    let wait = world.plan().waits[&only].clone();
    assert_eq!(
        wait.to_string(),
        "waiting: gpu-a, which could run this, is closed to new jobs; reopen with `hatchery node NAME --open`"
    );
    set(&mut world, gpu, NodeMode::Open);
    world.plan();
    assert_eq!(node_of(&world, only), Some(gpu));
}

#[test]
fn waiting_makes_urgent_and_nobody_is_crowded_out() {
    let mut world = World::new();
    let gpu = world.join("gpu-a", &[(Device::cuda(0), Some(flops(10.0)))]);
    let running = world.submit(100_000, any());
    world.plan();
    let old = world.submit_as("ann", 50_000, |spec| spec.queue.priority = priority(0));
    world.advance(Duration::from_hours(11));
    world.report(|_| (99_999, 10.0));
    let new = world.submit_as("ann", 100, |spec| spec.queue.priority = priority(100));
    commit(&mut world, running, 100_000);
    end(&mut world, running, Ending::Completed);
    world.plan();
    assert_eq!(node_of(&world, old), Some(gpu), "eleven hours are worth 110 points");
    assert_eq!(node_of(&world, new), None);

    // Twenty jobs of one person, then one of another, all alike: the one comes first.
    let mut world = World::new();
    world.join("gpu-a", &[(Device::cuda(0), Some(flops(10.0)))]);
    let many: Vec<JobId> = (0..20).map(|_| world.submit(1000, any())).collect();
    world.plan();
    let one = world.submit_as("bob", 1000, |_| ());
    let plan = world.plan();
    assert!(matches!(plan.waits[&one], Wait::Busy { .. }), "{:?}", plan.waits[&one]);
    assert!(matches!(plan.waits[&many[1]], Wait::Behind { jobs: 1, .. }), "{:?}", plan.waits[&many[1]]);
}

#[test]
fn one_person_has_no_more_running_than_allowed() {
    let (mut world, _) = trio();
    world.observed.policy = Policy { running_per_submitter_max: Some(1) };
    let first = world.submit(1000, any());
    let second = world.submit(1000, any());
    let other = world.submit_as("bob", 1000, |spec| spec.devices.kinds = vec![DeviceKind::Mps]);
    let plan = world.plan();
    assert!(node_of(&world, first).is_some() && node_of(&world, other).is_some());
    assert_eq!(
        plan.waits[&second].to_string(),
        "waiting: ann has reached the limit of running jobs per person, 1"
    );
}

#[test]
fn a_job_comes_after_others_and_fails_with_them() {
    let (mut world, [gpu, ..]) = trio();
    let first = world.submit(1000, any());
    let second = world.submit_as("ann", 1000, |spec| spec.queue.after = vec![first]);
    let third = world.submit_as("ann", 1000, |spec| spec.queue.after = vec![second]);
    let plan = world.plan();
    assert_eq!(plan.waits[&second].to_string(), "waiting: it starts after run");
    commit(&mut world, first, 1000);
    end(&mut world, first, Ending::Completed);
    world.plan();
    assert_eq!(node_of(&world, second), Some(gpu));
    world.ask(Cancel { job: second, by: name("ann") }).unwrap();
    end(&mut world, second, Ending::Stopped);
    world.plan();
    let JobPhase::Failed { why } = &world.job(third).phase else { panic!("{:?}", world.job(third).phase) };
    assert!(why.ends_with("which is cancelled"), "{why}");
}

#[test]
fn a_deadline_puts_a_job_first_when_it_comes_near() {
    let mut world = World::new();
    world.join("gpu-a", &[(Device::cuda(0), Some(flops(10.0)))]);
    let running = world.submit(100_000, any());
    world.plan();
    let short = world.submit(100, any());
    let deadline = world.now.wall + 20 * MINUTE;
    let late = world.submit_as("ann", 10_000, |spec| spec.queue.deadline = Some(deadline));
    let in_time = world.submit_as("ann", 10_000, |spec| spec.queue.deadline = Some(deadline + 600 * MINUTE));
    world.plan();
    commit(&mut world, running, 100_000);
    let plan = world.plan();
    let ahead = |job: JobId| match &plan.waits[&job] {
        Wait::Busy { .. } => 0,
        Wait::Behind { jobs, .. } => *jobs,
        other => panic!("{other}"),
    };
    assert_eq!((ahead(late), ahead(short), ahead(in_time)), (0, 1, 2));
}

#[test]
fn out_of_memory_halves_what_goes_through_at_once() {
    let mut world = World::new();
    let gpu = world.join("gpu-a", &[(Device::cuda(0), Some(flops(10.0)))]);
    let train = RawTrainSpec { steps: 1000, batch: 12, accumulate: 2, ..RawTrainSpec::default() };
    let job = world.submit_as("ann", 1000, |spec| spec.train = TrainSpec::new(train).unwrap());
    let mut parts = Vec::new();
    loop {
        world.plan();
        if world.job(job).phase != JobPhase::Running {
            break;
        }
        let told = assignment(&world.cluster, gpu, LEASE).attempts[0].spec.train.raw().clone();
        assert_eq!(told.batch, 12, "the step stays what it is");
        parts.push(told.accumulate);
        let ending = Ending::Failed { cause: FailureCause::OutOfMemory, message: "no room".into() };
        end(&mut world, job, ending);
        if let Some(until) = world.job(job).not_before {
            world.advance(until.since(world.now.wall));
            world.hear(gpu);
        }
    }
    assert_eq!(parts, [2, 4, 12]);
    let JobPhase::Failed { why } = &world.job(job).phase else { panic!("{:?}", world.job(job).phase) };
    assert!(why.starts_with("3 attempts ran out of memory on cuda"), "{why}");
}

#[test]
fn every_device_is_explained() {
    let (mut world, [_, mac, cpu]) = trio();
    let away = world.join("arm-c", &[(Device::CPU, Some(flops(0.3)))]);
    world.observed.nodes.get_mut(&away).unwrap().connected = false;
    world.join("small", &[(Device::CPU, Some(flops(0.3)))]);
    let first = world.submit(100_000, any());
    world.plan();
    world.ask(SetNodeMode { node: cpu, mode: NodeMode::Cordoned, by: name("ann") }).unwrap();
    let job = world.submit_as("ann", 5_000, |spec| {
        spec.devices.exclude = vec![name("small")];
    });
    world.plan();
    assert_eq!(node_of(&world, job), Some(mac));
    let told = explain(&world.cluster, &world.observed, world.now, job);
    let told: Vec<(&str, Verdict)> =
        told.iter().map(|candidate| (candidate.node_name.as_str(), candidate.verdict)).collect();
    let verdict = |node| told.iter().find(|(name, _)| *name == node).unwrap().1;
    assert_eq!(verdict("mac"), Verdict::Runs);
    assert_eq!(verdict("arm-c"), Verdict::NotConnected);
    assert_eq!(verdict("cpu-b"), Verdict::Cordoned);
    assert_eq!(verdict("small"), Verdict::Excluded);
    assert_eq!(verdict("gpu-a"), Verdict::EndsLater, "{told:?}");
    assert_eq!(explain(&world.cluster, &world.observed, world.now, first).len(), 5);
    let later = world.submit_as("ann", 10, |spec| spec.queue.after = vec![first]);
    let told = explain(&world.cluster, &world.observed, world.now, later);
    assert_eq!(told[0].verdict, Verdict::Possible, "{told:?}");
    let JobPhase::Running = world.job(first).phase else { panic!("{:?}", world.job(first).phase) };
    let told = explain(&world.cluster, &world.observed, world.now, JobId::from_bytes([0; 16]));
    assert_eq!(told, [], "there is no such job");
}

#[test]
fn a_replica_that_only_answers_is_not_at_hand_for_who_goes_on() {
    for serving in [0, 1] {
        let mut world = World::new();
        let trained_on = world.join("gpu-a", &[(Device::cuda(0), Some(flops(27.8)))]);
        let others = ["cpu-b", "cpu-c"].map(|name| world.join(name, &[(Device::CPU, Some(flops(3.0)))]));
        let job = world.submit(3_000, any());
        world.plan();
        assert_eq!(node_of(&world, job), Some(trained_on));
        let mut manifest = checkpoint(world.job(job), world.job(job).epoch, 100);
        manifest.files[2].size_bytes = 2 << 30;
        let id = manifest.id();
        let commit = CommitCheckpoint { node: trained_on, manifest: Box::new(manifest), self_test: None };
        world.ask(commit).unwrap();
        world.ask(SetNodeMode { node: trained_on, mode: NodeMode::Cordoned, by: name("ann") }).unwrap();
        end(&mut world, job, Ending::NodeAway);
        for (index, node) in others.into_iter().enumerate() {
            let state = ReplicaState::Ready { self_test_ms: 1.0 };
            let serving_only = index == serving;
            let replica = ReplicaReport { checkpoint: id, state, active: false, serving_only };
            world.observed.nodes.get_mut(&node).unwrap().report.replicas = vec![replica];
        }
        world.plan();
        assert_eq!(node_of(&world, job), Some(others[1 - serving]));
    }
}
