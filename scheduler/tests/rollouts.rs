//! Which checkpoint answers where, and which are kept.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
mod world;

use std::{num::NonZeroU32, time::Duration};

use hatchery_common::{
    device::Device,
    id::{CheckpointId, JobId, NodeId, RolloutId},
    recipe::{NodeSelector, ReplicaPolicy, ReplicateWhich, RetainPolicy},
    self_test::{SELF_TEST_BYTES, SelfTest},
    time::Timestamp,
};
use hatchery_scheduler::{
    Command, CommitCheckpoint, Pin, Push, Rejected, RollBack, Rollout, What, Withdraw, assignment,
    limits::ROLLOUTS_MAX,
};
use world::{LEASE, ROLLOUTS_KEPT, World, checkpoint, name};

/// Two nodes and a job that runs on one of them, with this policy.
fn running(replicate: ReplicaPolicy, retain: RetainPolicy) -> (World, JobId, [NodeId; 2]) {
    let mut world = World::new();
    let nodes = ["a", "b"].map(|name| world.join(name, &[(Device::CPU, Some(8e10))]));
    let job = world.submit_as("ann", 1000, |spec| (spec.replicate, spec.retain) = (replicate, retain));
    world.plan();
    (world, job, nodes)
}

/// Commits the checkpoint of `step`, and plans.
fn commit(world: &mut World, job: JobId, step: u64) -> CheckpointId {
    world.advance(Duration::from_secs(1));
    let manifest = Box::new(checkpoint(world.job(job), world.job(job).epoch, step));
    let (id, node) = (manifest.id(), world.job(job).lease.as_ref().unwrap().node);
    world.ask(CommitCheckpoint { node, manifest, self_test: None }).unwrap();
    world.hear(node);
    world.plan();
    id
}

fn activate(world: &mut World, checkpoint: CheckpointId, to: NodeSelector) -> RolloutId {
    world.advance(Duration::from_secs(1));
    let rollout = RolloutId::from_bytes(world.draw_id());
    let by = name("ann");
    let push = Push { rollout, checkpoint, to, activate: true, bytes_per_sec_max: Some(5_000_000), by };
    world.ask(push).unwrap();
    rollout
}

fn active(world: &World, node: NodeId, job: JobId) -> Option<CheckpointId> {
    assignment(&world.cluster, node, LEASE).active.get(&job).copied()
}

#[test]
fn the_newest_activation_counts_and_a_rollback_brings_back_what_was_before() {
    let to = NodeSelector::All;
    let policy = ReplicaPolicy { to, which: ReplicateWhich::Last, ..ReplicaPolicy::default() };
    let (mut world, job, [a, b]) = running(policy, RetainPolicy::default());
    let roll_back_from = |world: &mut World, from| world.ask(RollBack { job, from, by: name("bob") });
    let roll_back = |world: &mut World| roll_back_from(world, NodeSelector::All);
    assert_eq!(active(&world, a, job), None);
    let first = commit(&mut world, job, 100);
    let second = commit(&mut world, job, 200);
    assert_eq!(active(&world, a, job), Some(second), "the policy's");
    let error = roll_back(&mut world).unwrap_err();
    assert!(matches!(error, Rejected::NothingActivated { .. }), "{error}");

    activate(&mut world, first, NodeSelector::Nodes(vec![a]));
    let third = commit(&mut world, job, 300);
    assert_eq!((active(&world, a, job), active(&world, b, job)), (Some(first), Some(third)));
    let told = assignment(&world.cluster, a, LEASE);
    assert_eq!(told.bytes_per_sec_max, [(first, 5_000_000)].into());
    activate(&mut world, second, NodeSelector::All);
    assert_eq!((active(&world, a, job), active(&world, b, job)), (Some(second), Some(second)));
    let held = assignment(&world.cluster, a, LEASE).checkpoints;
    assert_eq!(
        held,
        [first, second, third],
        "what was active before stays, so that a rollback moves nothing"
    );

    roll_back(&mut world).unwrap();
    assert_eq!((active(&world, a, job), active(&world, b, job)), (Some(first), Some(third)));
    assert!(!assignment(&world.cluster, b, LEASE).checkpoints.contains(&second), "it is not wished any more");
    roll_back(&mut world).unwrap();
    assert_eq!(active(&world, a, job), Some(third));
    assert!(roll_back(&mut world).is_err(), "there is nothing left to roll back");

    // On one node alone: what an older rollout put there, then the policy's.
    activate(&mut world, first, NodeSelector::All);
    activate(&mut world, second, NodeSelector::All);
    let on_a = || NodeSelector::Nodes(vec![a]);
    roll_back_from(&mut world, on_a()).unwrap();
    assert_eq!((active(&world, a, job), active(&world, b, job)), (Some(first), Some(second)));
    roll_back_from(&mut world, on_a()).unwrap();
    assert_eq!((active(&world, a, job), active(&world, b, job)), (Some(third), Some(second)));
    assert!(roll_back_from(&mut world, on_a()).is_err());
    roll_back(&mut world).unwrap();
    assert_eq!((active(&world, a, job), active(&world, b, job)), (Some(third), Some(first)));

    // One that reaches no node any more is no reason to leave those in force that do.
    activate(&mut world, second, NodeSelector::Nodes(vec![a]));
    roll_back_from(&mut world, on_a()).unwrap();
    roll_back(&mut world).unwrap();
    assert_eq!((active(&world, a, job), active(&world, b, job)), (Some(third), Some(third)));
    roll_back(&mut world).unwrap();
    assert!(roll_back(&mut world).is_err(), "that was what was left of it");
    world.check_history();
}

#[test]
fn the_last_push_counts_also_where_the_clock_was_set_back() {
    let (mut world, job, [a, _]) = running(ReplicaPolicy::default(), RetainPolicy::default());
    let (first, second) = (commit(&mut world, job, 100), commit(&mut world, job, 200));
    let older = activate(&mut world, first, NodeSelector::All);
    world.now.wall = Timestamp(world.now.wall.0 - 3_600_000);
    let newer = activate(&mut world, second, NodeSelector::All);
    assert_eq!(active(&world, a, job), Some(second));
    let at = |id| world.cluster.rollouts[&id].at.0;
    assert_eq!(at(newer), at(older) + 1);
    world.check_history();
}

#[test]
fn what_was_taken_back_takes_no_room_from_new_rollouts() {
    let (mut world, job, _) = running(ReplicaPolicy::default(), RetainPolicy::default());
    let first = commit(&mut world, job, 100);
    let rollout = activate(&mut world, first, NodeSelector::None);
    let fill = |world: &mut World, withdrawn_at| {
        for index in world.cluster.rollouts.len()..ROLLOUTS_MAX {
            let id = RolloutId::from_bytes((index as u128).to_be_bytes());
            let one = Rollout { id, withdrawn_at, ..world.cluster.rollouts[&rollout].clone() };
            world.cluster.rollouts.insert(id, one);
        }
    };
    let now = world.now.wall;
    fill(&mut world, Some(now));
    let by = name("ann");
    let push = Push {
        rollout: RolloutId::from_bytes([7; 16]),
        checkpoint: first,
        to: NodeSelector::None,
        activate: true,
        bytes_per_sec_max: None,
        by,
    };
    push.clone().decide(&world.cluster, world.now).unwrap();
    world.cluster.rollouts.retain(|id, _| *id == rollout);
    fill(&mut world, None);
    let error = push.decide(&world.cluster, world.now).unwrap_err().to_string();
    assert!(error.contains("current rollouts"), "{error}");
}

#[test]
fn a_thousand_pushes_leave_bounded_records_and_rollbacks_lead_where_they_did() {
    let retain = RetainPolicy { last: NonZeroU32::new(1), every: 0 };
    let (mut world, job, nodes) = running(ReplicaPolicy::default(), retain);
    let [a, b] = nodes;
    let by_policy = |world: &World| world.job(job).checkpoint;
    let mut pushed: Vec<(CheckpointId, NodeSelector)> = Vec::new();
    for step in 1..=1000 {
        let to = match step % 5 {
            0 => NodeSelector::Nodes(vec![a]),
            1 => NodeSelector::Nodes(vec![b]),
            _ => NodeSelector::All,
        };
        // Each second one is a checkpoint that is pushed for the first time, else the newest goes elsewhere.
        let checkpoint =
            if step % 2 == 1 { commit(&mut world, job, step / 2 + 1) } else { pushed.last().unwrap().0 };
        activate(&mut world, checkpoint, to.clone());
        pushed.push((checkpoint, to));
        world.plan();
    }
    let reaches_a = |(_, to): &&(CheckpointId, NodeSelector)| *to != NodeSelector::Nodes(vec![b]);
    let records = world.cluster.rollouts.len();
    assert!(records <= 3 * ROLLOUTS_KEPT, "{records} rollouts are on record");
    let kept = world.cluster.checkpoints.len();
    assert!(kept <= records + 2, "{kept} checkpoints are kept, for {records} rollouts");

    // From one node, as often as is promised, it goes back through what was pushed.
    let mut before = pushed.iter().rev().filter(reaches_a).map(|(checkpoint, _)| *checkpoint);
    assert_eq!(active(&world, a, job), before.next());
    for _ in 1..ROLLOUTS_KEPT {
        let from = NodeSelector::Nodes(vec![a]);
        world.ask(RollBack { job, from, by: name("bob") }).unwrap();
        world.plan();
        assert_eq!(active(&world, a, job), before.next());
    }
    // A node that comes later gets what is to be everywhere.
    let late = world.join("c", &[(Device::CPU, None)]);
    let everywhere =
        pushed.iter().rfind(|(_, to)| *to == NodeSelector::All).map(|(checkpoint, _)| *checkpoint);
    assert_eq!(active(&world, late, job), everywhere);

    // All of it taken back: the policy's is active, and the history stays short.
    while world.ask(RollBack { job, from: NodeSelector::All, by: name("bob") }).is_ok() {
        world.advance(Duration::from_secs(1));
        world.plan();
    }
    assert_eq!(active(&world, a, job), by_policy(&world));
    assert_eq!(world.cluster.rollouts.len(), ROLLOUTS_KEPT);
    let last = world.batches.iter().flatten().rev().find_map(|event| match &event.what {
        What::RolloutWithdrawn { rollout, .. } => Some(*rollout),
        _ => None,
    });
    assert!(world.cluster.rollouts.contains_key(&last.unwrap()), "what was taken back last is shown");
    world.check_history();
}

#[test]
fn the_last_one_taken_back_stays_on_record_also_where_the_clock_was_set_back() {
    let (mut world, job, _) = running(ReplicaPolicy::default(), RetainPolicy::default());
    let first = commit(&mut world, job, 100);
    for _ in 0..2 * ROLLOUTS_KEPT {
        let rollout = activate(&mut world, first, NodeSelector::All);
        world.now.wall = Timestamp(world.now.wall.0 - 60_000);
        world.ask(RollBack { job, from: NodeSelector::All, by: name("bob") }).unwrap();
        world.plan();
        assert!(world.cluster.rollouts[&rollout].withdrawn_at.is_some());
    }
    assert_eq!(world.cluster.rollouts.len(), ROLLOUTS_KEPT);
    world.check_history();
}

#[test]
fn what_is_only_to_be_held_is_superseded_by_the_same_alone() {
    let (mut world, job, [a, _]) = running(ReplicaPolicy::default(), RetainPolicy::default());
    let checkpoints = [100, 200].map(|step| commit(&mut world, job, step));
    let hold = |world: &mut World, checkpoint, to| {
        world.advance(Duration::from_secs(1));
        let (rollout, by) = (RolloutId::from_bytes(world.draw_id()), name("ann"));
        let push = Push { rollout, checkpoint, to, activate: false, bytes_per_sec_max: None, by };
        world.ask(push).unwrap();
        world.plan();
        rollout
    };
    let oldest = checkpoints.map(|checkpoint| hold(&mut world, checkpoint, NodeSelector::Nodes(vec![a])));
    for _ in 0..10 {
        activate(&mut world, checkpoints[1], NodeSelector::All);
        hold(&mut world, checkpoints[0], NodeSelector::Nodes(vec![a]));
        hold(&mut world, checkpoints[0], NodeSelector::None);
    }
    assert!(!world.cluster.rollouts.contains_key(&oldest[0]));
    assert!(world.cluster.rollouts.contains_key(&oldest[1]), "nothing newer says the same");
    assert_eq!(assignment(&world.cluster, a, LEASE).checkpoints, checkpoints);
    world.check_history();
}

#[test]
fn a_policy_says_what_is_kept_and_need_comes_before_it() {
    let retain = RetainPolicy { last: NonZeroU32::new(2), every: 400 };
    let (mut world, job, _) = running(ReplicaPolicy::default(), retain);
    let steps = |world: &World| {
        let mut steps: Vec<u64> = world.cluster.checkpoints.values().map(|one| one.manifest.step).collect();
        steps.sort_unstable();
        steps
    };
    let first = commit(&mut world, job, 100);
    world.ask(Pin { checkpoint: first, is_pinned: true, by: name("ann") }).unwrap();
    let second = commit(&mut world, job, 201);
    let rollout = activate(&mut world, second, NodeSelector::None);
    for step in [301, 400, 500, 600, 700] {
        commit(&mut world, job, step);
    }
    let best = world.cluster.checkpoints[&world.job(job).best.unwrap()].manifest.step;
    let mut kept = vec![100, 201, best, 400, 600, 700];
    kept.sort_unstable();
    kept.dedup();
    assert_eq!(steps(&world), kept, "pinned, rolled out, the best, a landmark, the last two");

    let from = NodeSelector::All;
    world.ask(Withdraw { rollout, from, by: name("ann") }).unwrap();
    world.plan();
    assert!(steps(&world).contains(&201) == (best == 201), "nobody needs it any more");
    world.ask(Pin { checkpoint: first, is_pinned: false, by: name("ann") }).unwrap();
    world.plan();
    assert!(steps(&world).contains(&100) == (best == 100));
    // An agent that missed the answer asks again, long after.
    let retired = *world.cluster.retired.keys().next().unwrap();
    let event = world.batches.iter().flatten().find_map(|event| match &event.what {
        What::CheckpointCommitted { manifest, .. } if manifest.id() == retired => Some(manifest.clone()),
        _ => None,
    });
    let node = world.job(job).lease.as_ref().unwrap().node;
    let again = CommitCheckpoint { node, manifest: event.unwrap(), self_test: None };
    assert_eq!(world.ask(again).unwrap().events, []);
    world.check_history();
}

#[test]
fn without_a_policy_everything_is_kept() {
    let (mut world, job, _) = running(ReplicaPolicy::default(), RetainPolicy::default());
    for step in 1..50 {
        commit(&mut world, job, step);
    }
    assert_eq!((world.cluster.checkpoints.len(), world.cluster.retired.len()), (49, 0));
}

#[test]
fn what_a_checkpoint_answered_where_it_was_made_is_kept_with_it() {
    let (mut world, job, _) = running(ReplicaPolicy::default(), RetainPolicy::default());
    let manifest = Box::new(checkpoint(world.job(job), world.job(job).epoch, 100));
    let (id, node) = (manifest.id(), world.job(job).lease.as_ref().unwrap().node);
    let log_probabilities = vec![-0.1; SELF_TEST_BYTES];
    let self_test = SelfTest { answer: b"answers to this.".to_vec(), log_probabilities, serving: None };
    assert_eq!(self_test.check(), Ok(()));
    let boxed = Some(Box::new(self_test.clone()));
    world.ask(CommitCheckpoint { node, manifest, self_test: boxed }).unwrap();
    assert_eq!(world.cluster.checkpoints[&id].self_test, Some(self_test));
    world.check_history();
}
