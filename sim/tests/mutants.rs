//! The simulator notices: with a promise broken on purpose, some seed turns red for that reason.

#![cfg(target_os = "linux")]

use fail::FailScenario;
use hatchery_sim::run;

/// Most seeds that it may take.
const SEEDS_MAX: u64 = 40;

/// Breaks the house at `point`; gives the seed that says so, by a problem that begins with `invariant`.
fn seed_that_notices(point: &str, invariant: &str) -> Option<u64> {
    let scenario = FailScenario::setup();
    fail::cfg(point, "return").unwrap();
    let noticed =
        (1..=SEEDS_MAX).find(|seed| run(*seed).problems.iter().any(|problem| problem.starts_with(invariant)));
    scenario.teardown();
    noticed
}

#[test]
fn a_house_without_fencing_is_noticed() {
    assert!(seed_that_notices("agents::no_fencing", "I3").is_some());
}

#[test]
fn a_house_that_forgets_request_ids_is_noticed() {
    assert!(seed_that_notices("fleet::no_deduplication", "I2").is_some());
}

#[test]
fn agents_whose_leases_never_end_are_noticed() {
    assert!(seed_that_notices("lease::no_end", "I6").is_some());
}
