//! A node that was cut off is back, with a checkpoint.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
mod world;

use std::time::Duration;

use hatchery_common::{
    device::Device,
    id::{Epoch, JobId, NodeId},
    recipe::DeviceWishes,
    trainer::Ending,
};
use hatchery_scheduler::{
    Cancel, CommitCheckpoint, EndAttempt, Event, Goodbye, HandOver, JobPhase, LeaseEnd, Observed,
    OfferCheckpoint, Rejected, What,
};
use world::{LEASE, World, checkpoint, name};

/// A world in which a job of 300 steps was committed at step 100 by a node that then fell silent, and runs on another one.
fn taken_over() -> (World, JobId, NodeId, NodeId) {
    let mut world = World::new();
    let cpu: &[(Device, Option<f64>)] = &[(Device::CPU, Some(8e10))];
    for _ in 0..2 {
        world.join("cpu", cpu);
    }
    let job = world.submit(300, DeviceWishes::default());
    world.report(|_| (0, 1.0));
    world.plan();
    let silent = world.job(job).lease.as_ref().unwrap().node;
    let other = *world.cluster.nodes.keys().find(|node| **node != silent).unwrap();
    let manifest = Box::new(checkpoint(world.job(job), Epoch(1), 100));
    world.ask(CommitCheckpoint { node: silent, manifest, self_test: None }).unwrap();
    world.advance(LEASE);
    world.hear(other);
    world.plan();
    assert_eq!((world.job(job).epoch, world.job(job).lease.as_ref().unwrap().node), (Epoch(2), other));
    (world, job, silent, other)
}

fn offer(world: &mut World, node: NodeId, job: JobId, epoch: u64, step: u64) -> (Option<String>, usize) {
    let decision = world.ask(OfferCheckpoint { node, job, epoch: Epoch(epoch), step }).unwrap();
    let declined = decision.outcome.declined;
    (declined, decision.events.len())
}

fn bring(world: &mut World, node: NodeId, job: JobId, epoch: u64, step: u64) -> Result<(), Rejected> {
    let manifest = Box::new(checkpoint(world.job(job), Epoch(epoch), step));
    world.ask(CommitCheckpoint { node, manifest, self_test: None }).map(drop)
}

#[test]
fn what_is_further_is_used_and_the_attempt_that_is_behind_makes_way() {
    let (mut world, job, silent, other) = taken_over();
    assert_eq!(offer(&mut world, silent, job, 1, 200), (None, 0));
    bring(&mut world, silent, job, 1, 200).unwrap();
    let newest = world.job(job).checkpoint.unwrap();
    assert_eq!((world.job(job).checkpoint_step, world.cluster.checkpoints[&newest].late), (200, true));
    // 80 steps behind, at a step each second.
    world.advance(Duration::from_secs(11));
    world.report(|_| (120, 1.0));
    let events = world.plan().events;
    let overtaken = |event: &Event| {
        matches!(&event.what, What::HandOverRequested { why: HandOver::Overtaken { step: 200 }, .. })
    };
    assert!(events.iter().any(overtaken), "{events:?}");
    let end =
        EndAttempt { node: other, job, epoch: Epoch(2), ending: Ending::Stopped, last_output: String::new() };
    let ended = world.ask(end).unwrap().events;
    assert!(
        matches!(ended[..], [Event { what: What::LeaseEnded { why: LeaseEnd::HandedOver, .. }, .. }]),
        "{ended:?}"
    );
    world.plan();
    let lease = world.job(job).lease.as_ref().unwrap();
    assert_eq!((lease.resume_from, world.job(job).epoch), (Some(newest), Epoch(3)));
    assert_eq!(world.job(job).failures, [], "nobody is to blame");
}

#[test]
fn an_attempt_that_is_close_behind_goes_on() {
    let (mut world, job, silent, other) = taken_over();
    bring(&mut world, silent, job, 1, 125).unwrap();
    world.advance(Duration::from_secs(11));
    world.report(|_| (120, 1.0));
    let events = world.plan().events;
    assert!(!events.iter().any(|event| matches!(&event.what, What::HandOverRequested { .. })), "{events:?}");
    assert!(bring(&mut world, other, job, 2, 110).is_err(), "that is behind the newest");
    assert_eq!(
        offer(&mut world, other, job, 2, 110),
        (Some("the newest checkpoint is of step 125".into()), 0)
    );
    bring(&mut world, other, job, 2, 200).unwrap();
    assert_eq!(world.job(job).checkpoint_step, 200);
}

#[test]
fn a_restart_takes_no_attempt_for_one_that_is_behind() {
    let (mut world, job, silent, _) = taken_over();
    bring(&mut world, silent, job, 1, 125).unwrap();
    world.advance(Duration::from_secs(11));
    world.report(|_| (250, 1.0));
    world.plan();
    world.observed = Observed::new(world.now.boot, LEASE);
    assert_eq!(world.plan().events, [], "nobody has said yet how far it is");
    world.report(|_| (251, 1.0));
    assert_eq!(world.plan().events, []);
}

#[test]
fn what_is_no_further_is_dropped_with_a_line_in_the_history() {
    let (mut world, job, silent, other) = taken_over();
    bring(&mut world, other, job, 2, 250).unwrap();
    assert_eq!(
        offer(&mut world, silent, job, 1, 200),
        (Some("the newest checkpoint is of step 250".into()), 1)
    );
    assert!(bring(&mut world, silent, job, 1, 200).is_err());
    let last = world.batches.iter().flatten().last().unwrap();
    let declined = What::CheckpointDeclined { job, epoch: Epoch(1), node: silent, step: 200 }.at(last.at);
    assert_eq!(*last, declined);
    // What was committed in time was taken: that its answer was lost is no reason to tell otherwise.
    assert_eq!(offer(&mut world, silent, job, 1, 100), (None, 0));
    world.ask(Cancel { job, by: name("ann") }).unwrap();
    bring(&mut world, silent, job, 1, 260).unwrap();
    assert_eq!(world.job(job).phase, JobPhase::Cancelling, "what it came to may still be kept");
}

#[test]
fn only_who_had_the_epoch_may_bring_what_it_made() {
    let (mut world, job, silent, other) = taken_over();
    for (node, epoch) in [(other, 1), (silent, 2), (silent, 3), (other, 3), (other, 0)] {
        let fenced = Rejected::Fenced { job, given: Epoch(epoch), current: Epoch(2) };
        assert_eq!(bring(&mut world, node, job, epoch, 200), Err(fenced.clone()));
        assert_eq!(offer(&mut world, node, job, epoch, 200), (Some(fenced.to_string()), 0));
    }
}

#[test]
fn the_last_step_that_comes_late_ends_the_job() {
    // While it waits for a device.
    let (mut world, job, silent, other) = taken_over();
    world.ask(Goodbye { node: other }).unwrap();
    assert_eq!(world.job(job).phase, JobPhase::Queued);
    bring(&mut world, silent, job, 1, 300).unwrap();
    assert_eq!(world.job(job).phase, JobPhase::Completed);
    // While another attempt runs, however close it is.
    let (mut world, job, silent, other) = taken_over();
    world.report(|_| (299, 1.0));
    bring(&mut world, silent, job, 1, 300).unwrap();
    let events = world.plan().events;
    assert!(matches!(
        events[..],
        [.., Event { what: What::HandOverRequested { why: HandOver::Overtaken { .. }, .. }, .. }]
    ));
    let (ending, last_output) = (Ending::Stopped, String::new());
    world.ask(EndAttempt { node: other, job, epoch: Epoch(2), ending, last_output }).unwrap();
    assert_eq!(world.job(job).phase, JobPhase::Completed);
}

#[test]
fn a_term_after_the_restart_of_all_the_newest_offer_wins() {
    let (mut world, job, silent, other) = taken_over();
    world.advance(LEASE + Duration::from_secs(1));
    world.plan();
    assert_eq!(world.job(job).phase, JobPhase::Queued, "now the other one is silent too");
    bring(&mut world, silent, job, 1, 150).unwrap();
    bring(&mut world, other, job, 2, 220).unwrap();
    assert_eq!(offer(&mut world, silent, job, 1, 200).1, 1);
    world.hear(silent);
    world.plan();
    assert_eq!(world.job(job).epoch, Epoch(3));
    assert_eq!(world.job(job).checkpoint_step, 220);
}
