//! What a state folder is made of, and what the fleet's records say about blobs.

use std::{collections::BTreeMap, path::Path};

use hatchery_common::id::BlobId;
use hatchery_scheduler::Cluster;

use super::AdminError;

/// The database's file in a state folder, and its name in a backup.
pub(crate) const DATABASE_FILE: &str = "hatchery.db";
pub(crate) const AUTHORITY_FOLDER: &str = "authority";
/// The folder of blobs.
pub(crate) const BLOBS_FOLDER: &str = "blobs";
/// Where a whole state is while it is moved into place. While it is there, the folder around it is not whole.
pub const UNFINISHED_FOLDER: &str = "restoring";

/// Checks that `folder` holds a whole state.
pub(super) fn check_state(folder: &Path) -> Result<(), AdminError> {
    if folder.join(UNFINISHED_FOLDER).exists() {
        return Err(AdminError::Unfinished { folder: folder.to_owned() });
    }
    if !folder.join(DATABASE_FILE).is_file() {
        return Err(AdminError::NoState { folder: folder.to_owned(), missing: DATABASE_FILE });
    }
    Ok(())
}

/// A blob that the records name.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// Its size in bytes, as they say.
    pub(super) size_bytes: u64,
    /// By what first: `dataset 63eb698ffd94`.
    pub(super) by: String,
}

/// Every blob that the fleet's records name.
pub(super) fn named_blobs(cluster: &Cluster) -> BTreeMap<BlobId, Named> {
    let mut named = BTreeMap::new();
    let mut name = |blob, size_bytes, by: &dyn Fn() -> String| {
        named.entry(blob).or_insert_with(|| Named { size_bytes, by: by() });
    };
    for (id, dataset) in &cluster.datasets {
        for file in dataset.manifest.files() {
            name(file.blob, file.size_bytes, &|| format!("dataset {}", id.short()));
        }
    }
    for (id, checkpoint) in &cluster.checkpoints {
        let manifest = &checkpoint.manifest;
        for file in &manifest.files {
            name(file.blob, file.size_bytes, &|| {
                format!("checkpoint {} (step {})", id.short(), manifest.step)
            });
        }
    }
    named
}
