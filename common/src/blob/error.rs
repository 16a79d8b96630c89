//! What can go wrong with blobs.

use std::path::PathBuf;

use crate::{blob::ManifestError, durable::FileError, id::BlobId};

/// What can go wrong with blobs.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The store has no such blob.
    #[error("blob {id} is not in the store")]
    NotFound {
        /// The blob asked for.
        id: BlobId,
    },
    /// The store has the blob already; there is nothing to transfer.
    #[error("blob {id} is already in the store")]
    Present {
        /// The blob.
        id: BlobId,
    },
    /// Another writer is at work on the blob.
    #[error("blob {id} is already being written")]
    Busy {
        /// The blob.
        id: BlobId,
    },
    /// What came from outside is not the piece that it claims to be. Nothing was written.
    #[error("blob {id}: {problem}")]
    WrongPiece {
        /// The blob.
        id: BlobId,
        /// What is wrong with it.
        problem: ManifestError,
    },
    /// What stood on the disk has changed. It is out of the store now; fetch it again.
    #[error("blob {id} is damaged on this disk ({problem}); moved to {}", quarantine.display())]
    Corrupt {
        /// The blob.
        id: BlobId,
        /// What is wrong with it.
        problem: String,
        /// Where the damaged file is kept.
        quarantine: PathBuf,
    },
    /// Pieces are missing still.
    #[error("blob {id} lacks {missing} of its {count} pieces")]
    Incomplete {
        /// The blob.
        id: BlobId,
        /// How many are missing.
        missing: u32,
        /// How many there are.
        count: u32,
    },
    /// The disk is full, or would be fuller than is allowed.
    #[error(
        "the disk of {} is too full: {needed_bytes} bytes needed, {free_bytes} free, of which \
         {free_bytes_min} must stay free; free some space, or lower that limit",
        folder.display()
    )]
    Full {
        /// The store's folder.
        folder: PathBuf,
        /// Size of what was to be written.
        needed_bytes: u64,
        /// What is free.
        free_bytes: u64,
        /// What must stay free.
        free_bytes_min: u64,
    },
    /// The store would grow beyond its quota.
    #[error("the store {} is full: it holds {used_bytes} of {quota_bytes} bytes and needs {needed_bytes} more", folder.display())]
    Quota {
        /// The store's folder.
        folder: PathBuf,
        /// Size of what was to be written.
        needed_bytes: u64,
        /// What it holds, transfers in progress included.
        used_bytes: u64,
        /// What it may hold.
        quota_bytes: u64,
    },
    /// A manifest is wrong, or a blob too large to have one.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl BlobError {
    /// Whether there is no room for a blob: more of it would help, and nothing else.
    pub const fn is_for_want_of_room(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Quota { .. })
    }
}
