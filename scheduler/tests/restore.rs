//! A fleet that goes on from a backup never grants an epoch that it has granted since: I3.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
mod world;

use std::{collections::BTreeSet, time::Duration};

use hatchery_common::id::{Epoch, JobId};
use hatchery_scheduler::{Change, JobPhase, restored};
use proptest::prelude::*;
use world::{World, steps};

/// Histories in `cargo test`; `PROPTEST_CASES` asks for more.
const CASES: u32 = 100;

fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(CASES), failure_persistence: None, ..ProptestConfig::default() }
}

fn grants(batches: &[Vec<Change>]) -> BTreeSet<(JobId, Epoch)> {
    let granted = batches.iter().flatten().filter_map(|change| match change {
        Change::LeaseGranted { job, epoch, .. } => Some((*job, *epoch)),
        _ => None,
    });
    granted.collect()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_epoch_is_granted_twice_however_old_the_backup(
        before in steps(30),
        lost in steps(30),
        after in [steps(30), steps(30)],
        clock_back_ms in 0..10_000_000_000_u64,
    ) {
        // The fleet as it went on after the backup, until its coordinator was lost.
        let mut lost_world = World::new();
        before.iter().chain(&lost).for_each(|step| lost_world.step(step));
        let mut granted = grants(&lost_world.batches);
        let mut now = lost_world.now;
        // Twice the same backup, each time later than all that was before.
        for (round, after) in after.iter().enumerate() {
            let mut world = World::new();
            before.iter().for_each(|step| world.step(step));
            let last_event_at = world.batches.last().map_or(world.now.wall, |batch| batch[0].at());
            // A job that is submitted later has an id that was never used; here ids are drawn anew and may be.
            let known: BTreeSet<JobId> = world.cluster.jobs.keys().copied().collect();
            world.advance(Duration::from_millis(now.boot.0.saturating_sub(world.now.boot.0) + 1));
            let marks = world.batches.len();
            let changes = restored(&world.cluster, last_event_at, world.now.wall);
            world.apply(changes);
            prop_assert!(world.cluster.jobs.values().all(|job| job.lease.is_none()));
            prop_assert!(world.cluster.jobs.values().all(|job| job.phase != JobPhase::Cancelling));
            after.iter().for_each(|step| world.step(step));
            let new: BTreeSet<_> =
                grants(&world.batches[marks..]).into_iter().filter(|(job, _)| known.contains(job)).collect();
            let twice: Vec<_> = new.intersection(&granted).collect();
            prop_assert!(twice.is_empty(), "restore {round}: {twice:?}");
            granted.extend(new);
            now = world.now;
        }

        // With a clock far behind, one restore is still ahead of all that its backup and a million grants since have used.
        let mut world = World::new();
        before.iter().for_each(|step| world.step(step));
        let marks = world.batches.len();
        let early = hatchery_common::time::Timestamp(world.now.wall.0 - clock_back_ms);
        let changes = restored(&world.cluster, early, early);
        world.apply(changes);
        world.plan();
        let used = grants(&lost_world.batches);
        prop_assert!(grants(&world.batches[marks..]).is_disjoint(&used));
    }
}
