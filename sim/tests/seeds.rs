//! Many seeds hold, and the same seed gives the same trace.

#![cfg(target_os = "linux")]

use std::sync::Mutex;

use hatchery_sim::{run, run_many};

/// Seeds of the suite.
const SEEDS: u64 = 200;
/// How many run at the same time.
const THREADS: usize = 2;

#[test]
fn whatever_goes_wrong_the_house_keeps_its_promises() {
    let failed = Mutex::new(Vec::new());
    run_many(0..SEEDS, THREADS, |outcome| {
        if !outcome.problems.is_empty() {
            failed.lock().unwrap().push((outcome.seed, outcome.problems));
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "`cargo xtask sim --seeds 1 --seed SEED` shows each: {failed:#?}");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 10] {
        let (one, other) = (run(seed), run(seed));
        let differs = one.trace.iter().zip(&other.trace).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!(one.digest, other.digest, "seed {seed}");
    }
    assert_ne!(run(3).digest, run(4).digest);
}
