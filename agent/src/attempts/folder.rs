//! An attempt's folder, `JOB-EPOCH`: the trainer's checkpoints, and notes for an agent that is started again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hatchery_common::{
    durable::{self, FileError},
    id::{AttemptId, CheckpointId},
    session::AssignedAttempt,
    trainer::AttemptOrder,
};
use serde::{Deserialize, Serialize};

/// The order that a trainer is given.
const ORDER_FILE: &str = "order.json";
/// What the attempt was assigned.
const ASSIGNED_FILE: &str = "assigned.json";
const ASSIGNED_BYTES_MAX: u64 = 1 << 20;
/// The last checkpoint that the coordinator took.
const COMMITTED_FILE: &str = "committed.json";
const COMMITTED_BYTES_MAX: u64 = 4096;
/// Where the trainer writes.
const CHECKPOINTS_FOLDER: &str = "checkpoints";

/// The folder of one attempt, which need not exist.
#[derive(Clone, Debug)]
pub(crate) struct AttemptFolder {
    key: AttemptId,
    path: PathBuf,
}

/// The last checkpoint of an attempt that the coordinator took.
#[derive(Serialize, Deserialize)]
pub(super) struct Committed {
    pub(super) checkpoint: CheckpointId,
    pub(super) step: u64,
}

impl AttemptFolder {
    /// The folder of an attempt below `root`.
    pub(super) fn new(root: &Path, key: AttemptId) -> Self {
        Self { key, path: root.join(key.to_string()) }
    }

    /// All that lie in `root`, which must exist.
    pub(crate) fn list(root: &Path) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(root)? {
            found.extend(Self::read_name(entry?.path()));
        }
        Ok(found)
    }

    fn read_name(path: PathBuf) -> Option<Self> {
        let key = path.file_name()?.to_str()?.parse().ok()?;
        Some(Self { key, path })
    }

    pub(super) fn key(&self) -> AttemptId {
        self.key
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the trainer writes its checkpoints.
    pub(super) fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS_FOLDER)
    }

    /// Writes the trainer's order, and makes the folder for its checkpoints; gives the order's file.
    pub(super) fn write_order(&self, order: &AttemptOrder) -> Result<PathBuf, FileError> {
        durable::create_folder(&self.checkpoints())?;
        let path = self.path.join(ORDER_FILE);
        let text = serde_json::to_vec_pretty(order).expect("an order is always JSON");
        durable::write_atomically(&path, &text)?;
        Ok(path)
    }

    /// Notes what the attempt was assigned.
    pub(super) fn write_assigned(&self, assigned: &AssignedAttempt) -> Result<(), FileError> {
        let text = serde_json::to_vec(assigned).expect("ids, text and checked numbers are always JSON");
        durable::write_atomically(&self.path.join(ASSIGNED_FILE), &text)
    }

    /// What the attempt was assigned, if that was noted and can be read.
    pub(super) fn assigned(&self) -> Option<AssignedAttempt> {
        let text = durable::read_limited(&self.path.join(ASSIGNED_FILE), ASSIGNED_BYTES_MAX).ok()?;
        let assigned: AssignedAttempt = serde_json::from_slice(&text).ok()?;
        (assigned.id == self.key).then_some(assigned)
    }

    /// Notes which checkpoint the coordinator took.
    pub(super) fn write_committed(&self, committed: &Committed) -> Result<(), FileError> {
        let text = serde_json::to_vec(committed).expect("two numbers are always JSON");
        durable::write_atomically(&self.path.join(COMMITTED_FILE), &text)
    }

    pub(super) fn committed(&self) -> Option<Committed> {
        let text = durable::read_limited(&self.path.join(COMMITTED_FILE), COMMITTED_BYTES_MAX).ok()?;
        serde_json::from_slice(&text).ok()
    }
}
