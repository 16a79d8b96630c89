//! What a backup says about itself.

use hatchery_common::{digest::Digest, id::BlobId, time::Timestamp};
use serde::{Deserialize, Serialize};

/// The newest format known here.
pub(super) const FORMAT: u32 = 1;
/// Its name in the backup, where it is the last but the seal.
pub(super) const MANIFEST_NAME: &str = "manifest.json";
/// Longest manifest that is written or read.
pub(super) const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// What a backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// 1.
    pub(super) format: u32,
    /// The version that made it.
    pub(super) version: String,
    pub(super) made_at: Timestamp,
    /// The number of the last event in it.
    pub(super) last_event: u64,
    /// The parts before the blobs, in their order.
    pub(super) parts: Vec<Part>,
    /// Whether blobs were wanted.
    pub(super) with_blobs: bool,
    /// The blobs in it, in their order; each is named by its own digest.
    pub(super) blobs: Vec<BlobPart>,
    /// Blobs that the records name and that are not in it: left out, or lost before it was made.
    pub(super) blobs_missing: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) blake3: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlobPart {
    pub(super) id: BlobId,
    pub(super) size_bytes: u64,
}
