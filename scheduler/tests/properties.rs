//! Random histories of a small fleet. What must hold is in `world`; here it is only asked for.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
mod world;

use std::collections::BTreeSet;

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{FileFailurePersistence, TestRunner},
};
use world::{World, steps};

/// Histories in `cargo test`; `PROPTEST_CASES` asks for more.
const CASES: u32 = 2000;
/// Steps in a history.
const STEPS_MAX: usize = 40;

fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(CASES),
        // Beside this file, where the next run tries it first.
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_that_happens_breaks_what_always_holds(history in steps(STEPS_MAX)) {
        let mut world = World::new();
        for step in &history {
            world.step(step);
        }
        world.check_history();
    }
}

/// Histories that never poison a job or run out of a lease would prove little.
#[test]
fn the_histories_are_rich() {
    const HISTORIES: usize = 200;
    let mut runner = TestRunner::deterministic();
    let (mut kinds, mut phases, mut waits) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for _ in 0..HISTORIES {
        let history = steps(3 * STEPS_MAX).new_tree(&mut runner).unwrap().current();
        let mut world = World::new();
        for step in &history {
            world.step(step);
            waits.extend(world.plan().waits.values().map(hatchery_scheduler::Wait::code));
        }
        kinds.extend(world.batches.iter().flatten().map(hatchery_scheduler::Change::kind));
        phases.extend(world.cluster.jobs.values().map(|job| job.phase.name()));
    }
    assert_eq!(kinds.len(), 15, "{kinds:?}");
    assert_eq!(phases.len(), 7, "{phases:?}");
    assert_eq!(waits.len(), 7, "{waits:?}");
}
