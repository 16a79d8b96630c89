//! Many seeds hold, and the same seed gives the same trace.

#![cfg(target_os = "linux")]

use std::sync::Mutex;

use hatchery_sim::{Runs, SEEDS_AT_ONCE};

/// Seeds of the suite.
const SEEDS: u64 = 200;
/// Seeds that failed once, each with the reason in a line of its own; what they found stays found.
const FAILED_ONCE: [u64; 1] = [
    // The coordinator slept for less than it meant to wait, and took its own silence for an agent's.
    149,
];

fn runs() -> Runs {
    Runs::by(env!("CARGO_BIN_EXE_hatchery-sim"))
}

#[test]
fn whatever_goes_wrong_the_house_keeps_its_promises() {
    let failed = Mutex::new(Vec::new());
    let note = |outcome: hatchery_sim::Outcome| {
        if !outcome.problems.is_empty() {
            failed.lock().unwrap().push((outcome.seed, outcome.problems));
        }
    };
    runs().run_many(0..SEEDS, SEEDS_AT_ONCE, note);
    for seed in FAILED_ONCE {
        note(runs().run(seed));
    }
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "`cargo xtask sim --seeds 1 --seed SEED` shows each: {failed:#?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 10] {
        let (one, other) = (runs().run(seed), runs().run(seed));
        let differs = one.trace.iter().zip(&other.trace).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(one.digest, other.digest, "seed {seed}");
    }
    assert_ne!(runs().run(3).digest, runs().run(4).digest);
}
