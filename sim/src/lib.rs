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
mod clock;
mod coordinator;
mod entropy;
mod history;
#[cfg(target_os = "linux")]
mod libc_functions;
mod machine;
mod network;
mod people;
mod plan;
mod runs;
mod trainer;
mod world;

use std::{
    io, panic,
    path::Path,
    sync::{Mutex, Once},
    thread::{self, ThreadId},
};

use serde::{Deserialize, Serialize};

pub use runs::{Runs, SEEDS_AT_ONCE};

use crate::{history::lock, world::World};

/// Unoptimised code takes more room for its calls than a thread usually has.
const STACK_BYTES: usize = 32 << 20;

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub seed: u64,
    /// The digest of its trace.
    pub digest: String,
    /// What should not have been; empty for a good run.
    pub problems: Vec<String>,
    pub trace: Vec<String>,
    /// Simulated seconds.
    pub simulated_secs: f64,
}

impl Outcome {
    fn broken(seed: u64, why: String) -> Self {
        Self { seed, digest: String::new(), problems: vec![why], trace: Vec::new(), simulated_secs: 0.0 }
    }
}

/// Runs one seed. Once in a process: what the libraries under Hatchery take for random goes on from run to run. For
/// more there is [`Runs`].
pub fn run(seed: u64) -> Outcome {
    watch_panics();
    run_in_thread(seed).unwrap_or_else(|error| Outcome::broken(seed, format!("the run broke off: {error}")))
}

/// On a thread that has drawn nothing yet.
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
