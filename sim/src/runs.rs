//! Many runs, each in a process of its own, so that nothing of one can reach another.

use std::{
    ops::Range,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use crate::Outcome;

/// How many run at the same time, unless told otherwise.
pub const SEEDS_AT_ONCE: usize = 2;
/// The flag by which the program runs one seed and prints its outcome as JSON.
const ONE: &str = "--one";

/// How runs are made.
#[derive(Clone, Debug)]
pub struct Runs {
    program: PathBuf,
    failpoints: Option<String>,
}

impl Runs {
    /// Runs by this program: `hatchery-sim`.
    pub fn by(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), failpoints: None }
    }

    /// The same with a fault point armed: Hatchery is broken there on purpose.
    #[must_use]
    pub fn broken_at(mut self, point: &str) -> Self {
        self.failpoints = Some(format!("{point}=return"));
        self
    }

    pub fn run(&self, seed: u64) -> Outcome {
        let mut command = Command::new(&self.program);
        command.arg(ONE).arg(seed.to_string()).stdin(Stdio::null()).stderr(Stdio::inherit());
        if let Some(failpoints) = &self.failpoints {
            command.env("FAILPOINTS", failpoints);
        }
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => {
                let why = format!("cannot start {}: {error}", self.program.display());
                return Outcome::broken(seed, why);
            }
        };
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            Outcome::broken(seed, format!("the run broke off ({}): {error}", output.status))
        })
    }

    /// Many, so many at a time. `done` hears of each.
    pub fn run_many(&self, seeds: Range<u64>, at_once: usize, done: impl Fn(Outcome) + Sync) {
        let next = AtomicU64::new(seeds.start);
        thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end {
                            return;
                        }
                        done(self.run(seed));
                    }
                });
            }
        });
    }
}
