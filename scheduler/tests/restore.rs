//! A fleet that goes on from a backup never grants an epoch that it has granted since: I3.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
mod world;

use std::{collections::BTreeSet, time::Duration};

use hatchery_common::{
    id::{Epoch, JobId},
    time::Timestamp,
};
use hatchery_scheduler::{Event, JobPhase, What, restored};
use proptest::prelude::*;
use world::{Step, World, steps};

/// Histories in `cargo test`; `PROPTEST_CASES` asks for more.
const CASES: u32 = 100;

fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(CASES), failure_persistence: None, ..ProptestConfig::default() }
}

fn grants(batches: &[Vec<Event>]) -> BTreeSet<(JobId, Epoch)> {
    let granted = batches.iter().flatten().filter_map(|event| match &event.what {
        What::LeaseGranted { job, epoch, .. } => Some((*job, *epoch)),
        _ => None,
    });
    granted.collect()
}

/// A fleet to which these steps have happened.
fn after<'a>(history: impl IntoIterator<Item = &'a Step>) -> World {
    let mut world = World::new();
    go_on(&mut world, history);
    world
}

/// Lets the steps happen. In this world time stands still while leases are granted; in the real one each takes longer than a
/// millisecond, which is what restored epochs count on.
fn go_on<'a>(world: &mut World, history: impl IntoIterator<Item = &'a Step>) {
    for step in history {
        let batches = world.batches.len();
        world.step(step);
        let granted = grants(&world.batches[batches..]).len();
        world.advance(Duration::from_millis(granted as u64));
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_epoch_is_granted_twice_however_old_the_backup(
        kept in steps(30),
        lost in steps(30),
        later in [steps(30), steps(30)],
    ) {
        // The fleet as it went on after the backup, until its coordinator was lost.
        let lost = after(kept.iter().chain(&lost));
        let mut granted = grants(&lost.batches);
        let mut now = lost.now.boot;
        // Twice the same backup, each time later than all that was before.
        for (round, later) in later.iter().enumerate() {
            let mut world = after(&kept);
            let last_event_at = world.batches.last().map_or(world.now.wall, |batch| batch[0].at);
            // A job that is submitted later has an id that was never used; here ids are drawn anew and may be.
            let known: BTreeSet<JobId> = world.cluster.jobs.keys().copied().collect();
            world.advance(Duration::from_millis(now.0.saturating_sub(world.now.boot.0) + 1));
            let batches = world.batches.len();
            let events = restored(&world.cluster, last_event_at, world.now.wall);
            world.apply(events);
            prop_assert!(world.cluster.jobs.values().all(|job| job.lease.is_none()));
            prop_assert!(world.cluster.jobs.values().all(|job| job.phase != JobPhase::Cancelling));
            go_on(&mut world, later);
            let mut new = grants(&world.batches[batches..]);
            new.retain(|(job, _)| known.contains(job));
            let twice: Vec<_> = new.intersection(&granted).collect();
            prop_assert!(twice.is_empty(), "restore {round}: {twice:?}");
            granted.extend(new);
            now = world.now.boot;
        }

        // Without any clock, one restore is still ahead of all that was granted since its backup.
        let mut world = after(&kept);
        let batches = world.batches.len();
        let events = restored(&world.cluster, Timestamp(0), Timestamp(0));
        world.apply(events);
        world.plan();
        prop_assert!(grants(&world.batches[batches..]).is_disjoint(&grants(&lost.batches)));
    }
}
