//! The fleet in a simulation: the real coordinator and real agents, over their real services and mutual TLS, on a
//! network, clocks, a store and trainers that follow from one seed. A seed that fails, fails each time.
//!
//! ```text
//! seed -> plan of faults --v
//! people, coordinator, agents (real code, each on a host of the simulated network)
//!      |          |- store: SQLite, with faults and delays in front
//!      |          `- clock and randomness: the C library's functions, from the seed
//!      `- machines: trainers as state machines, which outlive a killed agent
//! history -> checks: I1 to I7, and that everything comes to an end once nothing goes wrong any more
//! ```
//!
//! Simulated are network, time, randomness, trainers, and the failures of the store's disk. Files are real ones, and
//! file work is done in place, in no simulated time. A killed process loses nothing that it has written: what a power
//! cut takes from a disk is the store's kill test's to find.

mod check;
mod checkpoint;
mod clock;
mod coordinator;
mod entropy;
mod history;
mod libc_functions;
mod machine;
mod network;
mod people;
mod plan;
mod trainer;
mod world;

use std::{
    io,
    ops::Range,
    panic,
    path::Path,
    sync::{
        Mutex, Once,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, ThreadId},
};

use crate::{history::lock, world::World};

/// Unoptimised code takes more room for its calls than a thread usually has.
const STACK_BYTES: usize = 32 << 20;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The run's seed.
    pub seed: u64,
    /// The digest of its trace.
    pub digest: String,
    /// What should not have been; empty for a good run.
    pub problems: Vec<String>,
    /// Its trace.
    pub trace: Vec<String>,
    /// Simulated seconds.
    pub simulated_secs: f64,
}

/// Runs one seed, on a thread of its own: what a thread has once taken for random stays with it.
pub fn run(seed: u64) -> Outcome {
    watch_panics();
    run_in_thread(seed).unwrap_or_else(|error| Outcome {
        seed,
        digest: String::new(),
        problems: vec![format!("the run broke off: {error}")],
        trace: Vec::new(),
        simulated_secs: 0.0,
    })
}

/// Runs many, so many at a time. `done` hears of each.
pub fn run_many(seeds: Range<u64>, threads: usize, done: impl Fn(Outcome) + Sync) {
    let next = AtomicU64::new(seeds.start);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    done(run(seed));
                }
            });
        }
    });
}

fn run_in_thread(seed: u64) -> io::Result<Outcome> {
    let folder = tempfile::tempdir_in(check::base_folder())?;
    let path = folder.path().to_owned();
    let thread = thread::Builder::new().name(format!("seed {seed}")).stack_size(STACK_BYTES);
    let simulated = thread.spawn(move || simulate(seed, &path))?.join();
    simulated.unwrap_or_else(|_| Err(io::Error::other(format!("a panic: {:?}", lock(&PANICS).last()))))
}

fn simulate(seed: u64, folder: &Path) -> io::Result<Outcome> {
    let world = World::new(seed, folder)?;
    world.run(seed);
    check::at_the_end(&world);
    let mut history = lock(&world.history);
    for (_, panic) in lock(&PANICS).iter().filter(|(thread, _)| *thread == thread::current().id()) {
        history.problem(format!("a panic: {panic}"));
    }
    Ok(Outcome {
        seed,
        digest: history.digest(),
        problems: std::mem::take(&mut history.problems),
        trace: std::mem::take(&mut history.lines),
        simulated_secs: clock::now().as_secs_f64(),
    })
}

/// Panics so far; a task's panic would be lost otherwise, with its task.
static PANICS: Mutex<Vec<(ThreadId, String)>> = Mutex::new(Vec::new());

fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            lock(&PANICS).push((thread::current().id(), info.to_string()));
            before(info);
        }));
    });
}
