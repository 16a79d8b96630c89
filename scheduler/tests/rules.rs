//! The rules of `decide` and `plan`, one example each.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
mod world;

use std::time::Duration;

use hatchery_common::{
    access::Scope,
    device::{Device, DeviceKind},
    digest::Digest,
    id::{CheckpointId, Epoch, JobId, NodeId, RequestId, RolloutId},
    model::{ModelConfig, RawModelConfig},
    recipe::{
        DeviceWishes, JobSpec, NodeSelector, RawTrainSpec, ReplicaPolicy, ReplicateWhich, StartFrom,
        StartHow, TrainSpec,
    },
    time::Timestamp,
    trainer::{Ending, FailureCause},
};
use hatchery_scheduler::{
    Cancel, Command, CommitCheckpoint, CreateToken, EndAttempt, Event, Goodbye, JobPhase, LeaseEnd, Push,
    Rejected, RemoveNode, Renew, SetInventory, Submit, What, assignment, desired_nodes, limits,
};
use world::{LEASE, World, checkpoint, dataset, name, spec};

const CPU: &[(Device, Option<f64>)] = &[(Device::CPU, Some(8e10))];

const MILLISECOND: Duration = Duration::from_millis(1);
const ALMOST_A_LEASE: Duration = LEASE.saturating_sub(MILLISECOND);

/// A world with one job of 300 steps running on one of `nodes` CPU nodes.
fn running(nodes: usize) -> (World, JobId) {
    let mut world = World::new();
    for _ in 0..nodes {
        world.join("cpu", CPU);
    }
    let job = world.submit(300, DeviceWishes::default());
    hear_all(&mut world);
    world.plan();
    assert_eq!(world.job(job).phase, JobPhase::Running);
    (world, job)
}

fn hear_all(world: &mut World) {
    for node in world.cluster.nodes.keys().copied().collect::<Vec<_>>() {
        world.hear(node);
    }
}

fn holder(world: &World, job: JobId) -> NodeId {
    world.job(job).lease.as_ref().unwrap().node
}

fn end(world: &mut World, job: JobId, ending: Ending) -> Result<Vec<Event>, Rejected> {
    let (node, epoch) = (holder(world, job), world.job(job).epoch);
    let last_output = "the last words".into();
    world.ask(EndAttempt { node, job, epoch, ending, last_output }).map(|decision| decision.events)
}

fn fail(world: &mut World, job: JobId, cause: FailureCause) {
    end(world, job, Ending::Failed { cause, message: "it says so".into() }).unwrap();
}

fn commit(world: &mut World, job: JobId, step: u64) -> Result<usize, Rejected> {
    let node = holder(world, job);
    let manifest = Box::new(checkpoint(world.job(job), world.job(job).epoch, step));
    world.ask(CommitCheckpoint { node, manifest, self_test: None }).map(|decision| decision.events.len())
}

/// Waits until the job may run again, and plans.
fn retry(world: &mut World, job: JobId) {
    let until = world.job(job).not_before.expect("it backs off");
    world.advance(until.since(world.now.wall));
    hear_all(world);
    world.plan();
    assert_eq!(world.job(job).phase, JobPhase::Running);
}

#[test]
fn a_job_runs_commits_and_completes() {
    let (mut world, job) = running(1);
    assert_eq!(commit(&mut world, job, 100), Ok(1));
    assert_eq!(commit(&mut world, job, 100), Ok(0), "the same again is done already");
    assert_eq!(commit(&mut world, job, 300), Ok(1));
    end(&mut world, job, Ending::Completed).unwrap();
    assert_eq!(world.job(job).phase, JobPhase::Completed);
    assert_eq!(world.job(job).ended_at, Some(world.now.wall));
    let again = world.ask(Cancel { job, by: name("ann") });
    assert_eq!(again, Err(Rejected::AlreadyEnded { job, phase: "completed" }));
}

#[test]
fn an_attempt_whose_last_checkpoint_never_came_is_tried_again() {
    let (mut world, job) = running(1);
    commit(&mut world, job, 100).unwrap();
    end(&mut world, job, Ending::Completed).unwrap();
    let [failure] = &world.job(job).failures[..] else { panic!("{:?}", world.job(job).failures) };
    assert_eq!((&world.job(job).phase, failure.cause), (&JobPhase::Queued, FailureCause::Storage));
    assert!(
        failure.message.contains("never arrived: the newest checkpoint is of step 100 of 300"),
        "{}",
        failure.message
    );
    retry(&mut world, job);
    commit(&mut world, job, 300).unwrap();
    end(&mut world, job, Ending::Completed).unwrap();
    assert_eq!(world.job(job).phase, JobPhase::Completed);
}

#[test]
fn an_attempt_that_crashes_after_the_last_checkpoint_has_completed() {
    let (mut world, job) = running(1);
    commit(&mut world, job, 300).unwrap();
    fail(&mut world, job, FailureCause::Crashed);
    assert_eq!(world.job(job).phase, JobPhase::Completed);
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused_by_field() {
    let (mut world, job) = running(1);
    commit(&mut world, job, 100).unwrap();
    let node = holder(&world, job);
    let good = checkpoint(world.job(job), Epoch(1), 200);
    let mut wrong = vec![("step", checkpoint(world.job(job), Epoch(1), 301))];
    wrong.push(("step", checkpoint(world.job(job), Epoch(1), 99)));
    wrong.push((
        "dataset",
        hatchery_common::checkpoint::CheckpointManifest { dataset: dataset(7).id(), ..good.clone() },
    ));
    wrong.push(("block", hatchery_common::checkpoint::CheckpointManifest { block: 17, ..good.clone() }));
    let stranger = hatchery_common::id::CheckpointId(Digest::of(b"another"));
    wrong.push((
        "parent",
        hatchery_common::checkpoint::CheckpointManifest { parent: Some(stranger), ..good.clone() },
    ));
    wrong.push(("files", hatchery_common::checkpoint::CheckpointManifest { files: vec![], ..good }));
    for (field, manifest) in wrong {
        match world.ask(CommitCheckpoint { node, manifest: Box::new(manifest), self_test: None }) {
            Err(Rejected::Field(error)) => assert_eq!(error.field, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn only_the_holder_of_the_lease_is_heard() {
    let (mut world, job) = running(2);
    let other = *world.cluster.nodes.keys().find(|node| **node != holder(&world, job)).unwrap();
    let manifest = Box::new(checkpoint(world.job(job), Epoch(1), 100));
    let fenced = Rejected::Fenced { job, given: Epoch(1), current: Epoch(1) };
    assert_eq!(world.ask(CommitCheckpoint { node: other, manifest, self_test: None }), Err(fenced));
    let (node, ending) = (holder(&world, job), Ending::Completed);
    let late = EndAttempt { node, job, epoch: Epoch(0), ending, last_output: String::new() };
    assert_eq!(world.ask(late), Err(Rejected::Fenced { job, given: Epoch(0), current: Epoch(1) }));
}

#[test]
fn a_lost_node_s_job_goes_on_elsewhere_from_its_checkpoint() {
    let (mut world, job) = running(2);
    commit(&mut world, job, 100).unwrap();
    let lost = holder(&world, job);
    let left = *world.cluster.nodes.keys().find(|node| **node != lost).unwrap();
    world.observed.nodes.get_mut(&lost).unwrap().connected = false;
    world.advance(ALMOST_A_LEASE);
    world.hear(left);
    assert_eq!(world.plan().events, [], "the lease still runs");
    world.advance(MILLISECOND);
    world.hear(left);
    let plan = world.plan();
    assert!(matches!(plan.events[0].what, What::LeaseEnded { why: LeaseEnd::NodeLost, .. }));
    let after = world.job(job);
    assert_eq!((after.epoch, holder(&world, job)), (Epoch(2), left));
    assert_eq!(after.lease.as_ref().unwrap().resume_from, after.checkpoint);
    assert_eq!(after.failures, [], "nobody is to blame");
}

#[test]
fn after_a_restart_every_lease_gets_its_full_term_again() {
    let (mut world, job) = running(1);
    world.advance(ALMOST_A_LEASE);
    world.observed = hatchery_scheduler::Observed::new(world.now.boot, LEASE);
    world.advance(ALMOST_A_LEASE);
    assert_eq!(world.plan().events, []);
    world.advance(MILLISECOND);
    assert_eq!(world.plan().events.len(), 1);
    assert_eq!(world.job(job).phase, JobPhase::Queued);
}

#[test]
fn three_crashes_on_two_nodes_poison_a_job() {
    let (mut world, job) = running(2);
    let mut ran_on = Vec::new();
    for crash in 1..=limits::CRASHES_MAX {
        ran_on.push(holder(&world, job));
        fail(&mut world, job, FailureCause::Crashed);
        if crash < limits::CRASHES_MAX {
            retry(&mut world, job);
        }
    }
    assert_ne!(ran_on[0], ran_on[1], "a node where it failed is avoided while there is another");
    let JobPhase::Poisoned { why } = &world.job(job).phase else { panic!("{:?}", world.job(job).phase) };
    assert!(why.contains("crashed 3 times, on cpu, cpu-2") && why.contains("the last words"), "{why}");
}

#[test]
fn on_a_single_node_poison_takes_six_crashes() {
    let (mut world, job) = running(1);
    let mut pauses = Vec::new();
    for _ in 1..limits::CRASHES_ON_ONE_NODE_MAX {
        fail(&mut world, job, FailureCause::Crashed);
        pauses.push(world.job(job).not_before.unwrap().since(world.now.wall).as_secs_f64());
        retry(&mut world, job);
    }
    for (pause, base) in pauses.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0]) {
        assert!((base..=base * 1.25).contains(pause), "{pauses:?}");
    }
    fail(&mut world, job, FailureCause::Crashed);
    assert_eq!(world.job(job).phase.name(), "poisoned");
}

#[test]
fn a_checkpoint_between_failures_shortens_the_pause_again() {
    let (mut world, job) = running(1);
    for _ in 0..8 {
        fail(&mut world, job, FailureCause::Storage);
        retry(&mut world, job);
    }
    fail(&mut world, job, FailureCause::Storage);
    let pause = world.job(job).not_before.unwrap().since(world.now.wall);
    assert!(pause >= limits::BACKOFF_MAX && pause <= limits::BACKOFF_MAX * 5 / 4, "{pause:?}");
    retry(&mut world, job);
    commit(&mut world, job, 10).unwrap();
    fail(&mut world, job, FailureCause::Storage);
    assert!(world.job(job).not_before.unwrap().since(world.now.wall) < Duration::from_secs(2));
    assert_eq!(world.job(job).phase, JobPhase::Queued, "storage is no reason to give up");
}

#[test]
fn failures_that_would_come_again_end_the_job() {
    for (cause, times) in
        [(FailureCause::BadInput, 1), (FailureCause::NotANumber, 2), (FailureCause::OutOfMemory, 2)]
    {
        let (mut world, job) = running(2);
        for time in 1..=times {
            fail(&mut world, job, cause);
            if time < times {
                retry(&mut world, job);
            }
        }
        let JobPhase::Failed { why } = &world.job(job).phase else { panic!("{:?}", world.job(job).phase) };
        assert!(why.contains("it says so\nthe last words"), "{why}");
    }
}

#[test]
fn long_output_is_cut_at_its_start() {
    let (mut world, job) = running(1);
    let (node, epoch) = (holder(&world, job), Epoch(1));
    let ending = Ending::Failed { cause: FailureCause::BadInput, message: "m".into() };
    let last_output = format!("{}the end", "ä".repeat(10_000));
    world.ask(EndAttempt { node, job, epoch, ending, last_output }).unwrap();
    let JobPhase::Failed { why } = &world.job(job).phase else { panic!() };
    assert!(why.len() < limits::OUTPUT_BYTES_MAX + 100 && why.ends_with("the end"), "{}", why.len());
}

#[test]
fn a_cancelled_attempt_keeps_its_lease_until_it_has_stopped() {
    let (mut world, job) = running(1);
    let cancel = Cancel { job, by: name("ann") };
    assert_eq!(world.ask(cancel.clone()).unwrap().events.len(), 1);
    assert_eq!(world.ask(cancel).unwrap().events, []);
    let told = assignment(&world.cluster, holder(&world, job), LEASE);
    assert!(told.attempts[0].stop);
    assert_eq!(commit(&mut world, job, 42), Ok(1), "its last checkpoint counts");
    end(&mut world, job, Ending::Stopped).unwrap();
    assert_eq!((&world.job(job).phase, world.job(job).checkpoint_step), (&JobPhase::Cancelled, 42));
}

#[test]
fn a_cancelled_attempt_on_a_lost_node_ends_with_its_lease() {
    let (mut world, job) = running(1);
    world.ask(Cancel { job, by: name("ann") }).unwrap();
    world.advance(LEASE);
    world.plan();
    assert_eq!(world.job(job).phase, JobPhase::Cancelled);
}

#[test]
fn a_goodbye_frees_the_job_at_once() {
    let (mut world, job) = running(1);
    let node = holder(&world, job);
    world.ask(Goodbye { node }).unwrap();
    assert_eq!((&world.job(job).phase, world.job(job).not_before), (&JobPhase::Queued, None));
}

#[test]
fn a_removed_node_loses_its_leases_and_its_certificates() {
    let (mut world, job) = running(1);
    let node = holder(&world, job);
    let old = *world.cluster.certificates.keys().next().unwrap();
    world.ask(RemoveNode { node, lease: LEASE }).unwrap();
    assert_eq!(world.job(job).phase, JobPhase::Queued);
    let other = world.join("other", CPU);
    world.advance(ALMOST_A_LEASE);
    world.hear(other);
    assert_eq!(world.plan().events, [], "the removed node may train on still");
    world.advance(MILLISECOND);
    world.hear(other);
    world.plan();
    assert_eq!(holder(&world, job), other);
    let new = hatchery_common::id::CertificateId::from_bytes([7; 16]);
    assert_eq!(world.ask(Renew { old, new }), Err(Rejected::BadCertificate));
    assert_eq!(
        world.ask(RemoveNode { node, lease: LEASE }).unwrap_err().to_string(),
        format!("there is no node {node}")
    );
}

#[test]
fn nodes_of_one_name_are_numbered_and_labels_of_the_token_win() {
    let mut world = World::new();
    let ids = [(); 3].map(|()| world.join("gpu-a", CPU));
    let names = ids.map(|id| world.cluster.nodes[&id].name.to_string());
    assert_eq!(names, ["gpu-a", "gpu-a-2", "gpu-a-3"]);
    assert_eq!(world.cluster.nodes[&ids[0]].labels.len(), 2);
    let long = "x".repeat(63);
    let ids = [(); 2].map(|()| world.join(&long, CPU));
    assert_eq!(world.cluster.nodes[&ids[1]].name.as_str(), format!("{}-2", "x".repeat(61)));
}

#[test]
fn a_submission_is_checked_against_its_dataset() {
    let mut world = World::new();
    let small = world.dataset(20);
    let submit = |spec| Submit {
        request: RequestId::from_bytes([1; 16]),
        job: JobId::from_bytes([1; 16]),
        body: Digest::of(b"body"),
        spec: Box::new(spec),
        submitter: name("ann"),
    };
    let error = world.ask(submit(spec(&small, 10))).unwrap_err().to_string();
    assert!(error.starts_with("data: the corpus has 20 bytes: 18 for training and 2"), "{error}");
    let error = world.ask(submit(spec(&dataset(5000), 10))).unwrap_err().to_string();
    assert!(error.starts_with("dataset: there is no dataset "), "{error}");
}

#[test]
fn the_queue_is_bounded() {
    let mut world = World::new();
    for _ in 0..3 {
        world.submit(10, DeviceWishes::default());
    }
    let job = world.cluster.jobs.values().next().unwrap().clone();
    for number in 0..limits::JOBS_WAITING_MAX as u128 - 3 {
        let id = JobId::from_bytes(number.to_le_bytes());
        world.cluster.jobs.insert(id, hatchery_scheduler::Job { id, ..job.clone() });
    }
    let request = Submit {
        request: RequestId::from_bytes([1; 16]),
        job: JobId::from_bytes([255; 16]),
        body: Digest::of(b"body"),
        spec: Box::new(job.spec),
        submitter: name("ann"),
    };
    let error = request.decide(&world.cluster, world.now).unwrap_err();
    assert_eq!(error.to_string(), "the fleet already has 10000 jobs waiting, the limit");
}

#[test]
fn a_job_waits_for_the_fast_device_or_takes_the_slow_one_whichever_ends_first() {
    let mut world = World::new();
    let gpu = world.join("gpu-a", &[(Device::cuda(0), Some(8e12))]);
    let cpu = world.join("cpu-b", &[(Device::CPU, Some(8e10))]);
    let long = world.submit(1_000_000, DeviceWishes::default());
    world.plan();
    assert_eq!(holder(&world, long), gpu);
    let short = world.submit(100, DeviceWishes::default());
    let second_long = world.submit(1_000_000, DeviceWishes::default());
    world.plan();
    assert_eq!(holder(&world, short), cpu, "it is done on the slow one before the fast one is free");
    assert_eq!(
        world.job(second_long).phase,
        JobPhase::Queued,
        "it ends sooner behind the first on the fast one"
    );
}

#[test]
fn wishes_are_kept() {
    let mut world = World::new();
    world.join("gpu-a", &[(Device::cuda(0), Some(8e12)), (Device::CPU, None)]);
    let cpu = world.join("cpu-b", CPU);
    let kinds = vec![DeviceKind::Cpu];
    let job = world.submit(10, DeviceWishes { kinds, nodes: vec![name("cpu-b")], ..DeviceWishes::default() });
    world.plan();
    assert_eq!(holder(&world, job), cpu);
}

fn push(rollout: RolloutId, checkpoint: CheckpointId, to: NodeSelector) -> Push {
    let by = name("ann");
    Push { rollout, checkpoint, to, activate: false, bytes_per_sec_max: None, by }
}

#[test]
fn checkpoints_go_where_policy_and_people_want_them() {
    let mut world = World::new();
    let nodes = [world.join("a", CPU), world.join("b", CPU)];
    let dataset = world.dataset(world::CORPUS_BYTES);
    let replicate = ReplicaPolicy {
        to: NodeSelector::Nodes(vec![nodes[0]]),
        which: ReplicateWhich::Last,
        ..ReplicaPolicy::default()
    };
    let spec = JobSpec { replicate, ..spec(&dataset, 300) };
    let (request, job) = (RequestId::from_bytes([1; 16]), JobId::from_bytes([2; 16]));
    let body = Digest::of(b"body");
    world.ask(Submit { request, job, body, spec: Box::new(spec), submitter: name("ann") }).unwrap();
    world.plan();
    commit(&mut world, job, 100).unwrap();
    let first = world.job(job).checkpoint.unwrap();
    world.advance(Duration::from_secs(1));
    commit(&mut world, job, 200).unwrap();
    let second = world.job(job).checkpoint.unwrap();
    assert_eq!(assignment(&world.cluster, nodes[0], LEASE).checkpoints, [second], "only the last");
    assert_eq!(assignment(&world.cluster, nodes[1], LEASE).checkpoints, []);
    let rollout = RolloutId::from_bytes([3; 16]);
    world.ask(push(rollout, first, NodeSelector::All)).unwrap();
    assert_eq!(assignment(&world.cluster, nodes[0], LEASE).checkpoints, [first, second], "oldest first");
    assert_eq!(desired_nodes(&world.cluster)[&first], nodes.into());
    assert_eq!(desired_nodes(&world.cluster)[&second], [nodes[0]].into());
}

#[test]
fn the_best_checkpoint_is_that_of_the_lowest_validation_loss() {
    let (mut world, job) = running(1000);
    let node = holder(&world, job);
    let to = NodeSelector::All;
    world.cluster.jobs.get_mut(&job).unwrap().spec.replicate =
        ReplicaPolicy { to, which: ReplicateWhich::Best, ..ReplicaPolicy::default() };
    let mut commit_validated = |step: u64, validation: Option<(u64, f64)>| {
        let mut manifest = checkpoint(world.job(job), world.job(job).epoch, step);
        manifest.metrics.validation_step = validation.map(|(step, _)| step);
        manifest.metrics.validation_loss = validation.map(|(_, loss)| loss);
        let (id, manifest) = (manifest.id(), Box::new(manifest));
        world.ask(CommitCheckpoint { node, manifest, self_test: None }).unwrap();
        let job = world.job(job);
        let assigned = assignment(&world.cluster, node, LEASE).checkpoints;
        assert!(assigned.iter().copied().eq(job.best), "only the best is replicated");
        (id, job.best)
    };
    assert_eq!(commit_validated(1, None).1, None, "nothing was validated");
    let (second, best) = commit_validated(2, Some((2, 3.0)));
    assert_eq!(best, Some(second));
    assert_eq!(commit_validated(3, Some((2, 1.0))).1, Some(second), "that validation was of another step");
    assert_eq!(commit_validated(4, Some((4, 3.0))).1, Some(second), "it is no better");
    let (fifth, best) = commit_validated(5, Some((5, 2.5)));
    assert_eq!(best, Some(fifth));
}

#[test]
fn a_run_that_ended_early_is_completed_though_its_node_says_nothing_more() {
    let (mut world, job) = running(1000);
    let node = holder(&world, job);
    let mut manifest = checkpoint(world.job(job), world.job(job).epoch, 40);
    manifest.metrics.early_stop = Some(3);
    world.ask(CommitCheckpoint { node, manifest: Box::new(manifest), self_test: None }).unwrap();
    assert_eq!(world.job(job).phase, JobPhase::Running);
    world.advance(2 * LEASE);
    world.plan();
    assert_eq!(world.job(job).phase, JobPhase::Completed);
}

#[test]
fn a_job_may_begin_with_a_checkpoint_of_another() {
    let (mut world, first) = running(1);
    commit(&mut world, first, 100).unwrap();
    commit(&mut world, first, 300).unwrap();
    end(&mut world, first, Ending::Completed).unwrap();
    let parent = world.job(first).checkpoint.unwrap();
    let dataset = world.dataset(world::CORPUS_BYTES);
    let submit = |world: &mut World, id: u8, how, change: Alter| {
        let start_from = Some(StartFrom { checkpoint: parent, how });
        let mut spec = JobSpec { start_from, ..spec(&dataset, 400) };
        change(&mut spec);
        let (request, job) = (RequestId::from_bytes([id; 16]), JobId::from_bytes([id; 16]));
        let (body, spec, submitter) = (Digest::of(&[id]), Box::new(spec), name("ann"));
        world.ask(Submit { request, job, body, spec, submitter }).map(|_| job)
    };
    let refused: [(StartHow, Alter, &str); 4] = [
        (StartHow::Continue, |spec| spec.train = spec_of_steps(300), "300 steps"),
        (StartHow::Continue, |spec| spec.model = wider(), "otherwise fine-tune"),
        (StartHow::FineTune, |spec| spec.model = wider(), "differs in shape"),
        (
            StartHow::FineTune,
            |spec| spec.start_from.as_mut().unwrap().checkpoint = CheckpointId(Digest::of(b"gone")),
            "no checkpoint",
        ),
    ];
    for (how, change, expected) in refused {
        let error = submit(&mut world, 7, how, change).unwrap_err().to_string();
        assert!(error.contains("start_from") && error.contains(expected), "{error}");
    }

    for (id, how, step) in [(8, StartHow::Continue, 300), (9, StartHow::FineTune, 0)] {
        let job = submit(&mut world, id, how, |_| {}).unwrap();
        hear_all(&mut world);
        world.plan();
        assert_eq!(world.job(job).lease.as_ref().unwrap().resume_from, Some(parent));
        assert_eq!(world.job(job).steps_done(), step);
        assert!(commit(&mut world, job, step).is_err(), "that is done already");
        commit(&mut world, job, step + 50).unwrap();
        let own = world.job(job).checkpoint.unwrap();
        assert_eq!(world.cluster.checkpoints[&own].manifest.parent, Some(parent));
        end(&mut world, job, Ending::Stopped).unwrap();
        world.plan();
        assert_eq!(world.job(job).lease.as_ref().unwrap().resume_from, Some(own), "its own comes first");
        commit(&mut world, job, 400).unwrap();
        end(&mut world, job, Ending::Completed).unwrap();
    }
}

/// What makes a spec another.
type Alter = fn(&mut JobSpec);

fn spec_of_steps(steps: u64) -> TrainSpec {
    TrainSpec::new(RawTrainSpec { steps, block: 16, ..Default::default() }).unwrap()
}

fn wider() -> ModelConfig {
    ModelConfig::new(RawModelConfig { n_embd: 16, ..Default::default() }).unwrap()
}

#[test]
fn of_too_many_checkpoints_the_newest_and_the_pushed_are_assigned() {
    let (mut world, job) = running(1);
    let node = holder(&world, job);
    commit(&mut world, job, 1).unwrap();
    let oldest = world.job(job).checkpoint.unwrap();
    let (rollout, to) = (RolloutId::from_bytes([3; 16]), NodeSelector::All);
    world.ask(push(rollout, oldest, to.clone())).unwrap();
    world.cluster.jobs.get_mut(&job).unwrap().spec.replicate =
        ReplicaPolicy { to, which: ReplicateWhich::Each, ..ReplicaPolicy::default() };
    let copied = world.cluster.checkpoints[&oldest].clone();
    let ids: Vec<_> = (1..=limits::CHECKPOINTS_ASSIGNED_MAX as u64)
        .map(|number| {
            let id = hatchery_common::id::CheckpointId(Digest::of(&number.to_le_bytes()));
            let committed_at = copied.committed_at + Duration::from_secs(number);
            let checkpoint = hatchery_scheduler::Checkpoint { committed_at, ..copied.clone() };
            world.cluster.checkpoints.insert(id, checkpoint);
            id
        })
        .collect();
    let told = assignment(&world.cluster, node, LEASE).checkpoints;
    assert_eq!(told[0], oldest, "it was pushed");
    assert_eq!(told[1..], ids[1..], "the oldest of the others is left out");
    assert!(!desired_nodes(&world.cluster).contains_key(&ids[0]));
}

#[test]
fn a_doubled_device_and_a_measurement_that_is_no_number_are_refused() {
    let mut world = World::new();
    let node = world.join("a", CPU);
    for devices in [vec![CPU[0], CPU[0]], vec![(Device::CPU, Some(f64::NAN))]] {
        let inventory = Box::new(world::inventory(&devices));
        match world.ask(SetInventory { node, inventory }) {
            Err(Rejected::Field(error)) => assert_eq!(error.field, "devices"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_token_must_expire_later() {
    let mut world = World::new();
    let request = CreateToken {
        secret: Digest::of(b"secret"),
        scope: Scope::Viewer,
        name: None,
        labels: [].into(),
        by: name("ann"),
        expires_at: Timestamp(5),
    };
    let error = world.ask(request).unwrap_err().to_string();
    assert_eq!(error, "expires_at: 1970-01-01 00:00:00 UTC is in the past");
}

#[test]
fn a_leaving_node_is_given_nothing_and_keeps_what_it_has() {
    let (mut world, job) = running(1);
    let node = holder(&world, job);
    world.observed.nodes.get_mut(&node).unwrap().report.leaving = true;
    assert_eq!(world.plan().events, []);
    end(&mut world, job, Ending::Stopped).unwrap();
    assert_eq!(world.plan().events, [], "it is not given back to the one that leaves");
    assert_eq!(world.job(job).phase, JobPhase::Queued);
}
