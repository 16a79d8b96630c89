//! What happened: what was asked and answered, what was seen, and what was done to the fleet.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

/// The wall clock in milliseconds, as events and trainers have it; all run on this machine.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// One call of `hatchery submit`.
#[derive(Clone, Debug)]
pub struct Submission {
    pub request: String,
    /// Tells bodies of one request apart.
    pub body: String,
    /// Whether its text is one that the coordinator did not have when it was sent first.
    pub brings_text: bool,
    /// The exit code; none: it was killed before it had an answer.
    pub code: Option<i32>,
    /// The job that it was told, if it was told one.
    pub job: Option<String>,
    /// What it said besides.
    pub said: String,
    /// When it began and ended.
    pub time_ms: (u64, u64),
}

/// A job as a person saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenJob {
    pub phase: String,
    pub epoch: u64,
    /// The step of its newest checkpoint.
    pub checkpoint_step: u64,
    pub checkpoint: Option<String>,
}

/// All jobs, as one answer showed them.
#[derive(Clone, Debug, Default)]
pub struct Sighting {
    /// When it was asked and answered.
    pub time_ms: (u64, u64),
    pub jobs: BTreeMap<String, SeenJob>,
}

#[derive(Clone, Debug, Default)]
pub struct Records {
    pub submissions: Vec<Submission>,
    /// Jobs whose cancellation was answered OK.
    pub cancelled: Vec<String>,
    /// What was seen of the jobs, in the order of the answers.
    pub sightings: Vec<Sighting>,
    /// When coordinators were started.
    pub coordinator_starts_ms: Vec<u64>,
    /// How many trainers were killed.
    pub trainers_killed: u64,
    /// Blobs of the coordinator in which a bit was flipped.
    pub flipped: Vec<String>,
    /// How many files of replicas were damaged in the same way.
    pub replicas_flipped: u64,
    /// When no file could be synced by the coordinator.
    pub unsynced_ms: Vec<(u64, u64)>,
    /// When the disk was full.
    pub disk_full_ms: Vec<(u64, u64)>,
    /// How often each thing was done to the fleet.
    pub faults: BTreeMap<&'static str, u64>,
    /// The most memory that the coordinator was seen with, in bytes.
    pub memory_bytes_max: u64,
    /// Processes that ended although nobody ended them.
    pub unexpected_ends: Vec<String>,
    pub answers: u64,
    /// Pauses that were answered OK.
    pub pauses: u64,
    /// Nodes that were drained, with an OK.
    pub drains: u64,
}

/// Records from several threads.
#[derive(Debug, Default)]
pub struct History(Mutex<Records>);

impl History {
    /// All that is recorded.
    pub fn records(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn coordinator_started(&self, at_ms: u64) {
        self.records().coordinator_starts_ms.push(at_ms);
    }

    pub(crate) fn fault(&self, kind: &'static str) {
        *self.records().faults.entry(kind).or_default() += 1;
    }
}

impl Submission {
    /// Whether the answer was OK.
    pub fn is_acknowledged(&self) -> bool {
        self.code == Some(0)
    }
}
