//! Checkpoint folders that a trainer has finished.

use std::path::{Path, PathBuf};

use hatchery_common::{
    checkpoint::{CheckpointManifest, SERVING_FILE, TRAINING_FILE, folder_name},
    cursor::TrainingCursor,
    durable,
    trainer::Metrics,
};

/// Longest `training.json`.
const CURSOR_BYTES_MAX: u64 = 1 << 20;

/// A checkpoint folder that a trainer has finished.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) folder: PathBuf,
    pub(crate) step: u64,
    pub(crate) metrics: Metrics,
}

impl Finished {
    /// The size of its files.
    pub(crate) fn size_bytes(&self) -> u64 {
        let size = |name| self.folder.join(name).metadata().map_or(0, |metadata| metadata.len());
        CheckpointManifest::FILES.into_iter().chain([SERVING_FILE]).map(size).sum()
    }

    /// The finished checkpoints in a folder, oldest first: what an earlier agent left.
    pub(crate) fn in_folder(folder: &Path) -> Vec<Self> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut found: Vec<Self> = entries.filter_map(|entry| Self::read(&entry.path())).collect();
        found.sort_by_key(|finished| finished.step);
        found
    }

    fn read(folder: &Path) -> Option<Self> {
        let complete = CheckpointManifest::FILES.iter().all(|name| folder.join(name).is_file());
        let text = durable::read_limited(&folder.join(TRAINING_FILE), CURSOR_BYTES_MAX).ok()?;
        let cursor: TrainingCursor = serde_json::from_slice(&text).ok()?;
        // The trainer gives the name last, so another name means that it was not finished.
        let named = folder.file_name()?.to_str()? == folder_name(cursor.step);
        (complete && named).then(|| Self {
            folder: folder.to_owned(),
            step: cursor.step,
            metrics: cursor.metrics,
        })
    }
}
