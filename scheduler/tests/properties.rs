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
use world::{Step, Stray, World, steps};

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
        kinds.extend(world.batches.iter().flatten().map(|event| event.what.kind()));
        phases.extend(world.cluster.jobs.values().map(|job| job.phase.name()));
    }
    assert_eq!(kinds.len(), 26, "{kinds:?}");
    assert_eq!(phases.len(), 8, "{phases:?}");
    assert_eq!(waits.len(), 12, "{waits:?}");
}

/// Found by 12,776 histories: a job waits for the better of two nodes on which it has not failed; when the other one
/// falls silent, a node on which it has failed is the best, and the plan had not asked to be woken for that.
#[test]
fn a_plan_wakes_when_a_silent_node_is_out_of_reach() {
    let submit = |wishes| Step::Submit { steps: 0, wishes, policy: 0 };
    let join = |devices| Step::Join { name: 0, devices, scope: 2 };
    let end = Step::End { job: 0, stray: Stray::No, ending: 0 };
    let hear = Step::Hear { node: 3, progress: 0, rate: 0 };
    let before = [join(5), join(4), submit(1), submit(0), end, submit(0), join(2), submit(1)];
    let mut world = World::new();
    for step in before.iter().chain(&[Step::Advance(1), hear, Step::KeepsCrashing(2)]) {
        world.step(step);
    }
    assert!(world.plan().wake_at.is_some());
}
