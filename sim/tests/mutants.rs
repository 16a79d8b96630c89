//! The simulator notices: with a promise broken on purpose, some seed turns red for that reason.

#![cfg(target_os = "linux")]

use hatchery_sim::Runs;

/// Most seeds that it may take.
const SEEDS_MAX: u64 = 40;

/// Whether a seed says that `invariant` does not hold, with Hatchery broken at `point`.
fn is_noticed(point: &str, invariant: &str) -> bool {
    let runs = Runs::by(env!("CARGO_BIN_EXE_hatchery-sim")).broken_at(point);
    let says_so = |seed| runs.run(seed).problems.iter().any(|problem| problem.starts_with(invariant));
    (1..=SEEDS_MAX).any(says_so)
}

#[test]
fn a_house_without_fencing_is_noticed() {
    assert!(is_noticed("mutant::fencing", "I3"));
}

#[test]
fn a_house_that_forgets_request_ids_is_noticed() {
    assert!(is_noticed("mutant::request_deduplication", "I2"));
}

#[test]
fn agents_whose_leases_never_end_are_noticed() {
    assert!(is_noticed("mutant::lease_margin", "I6"));
}
