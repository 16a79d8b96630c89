//! The chores around a coordinator's state folder: backup, restore, and a check of everything in it.
//!
//! All three work on the folder itself, on the coordinator's own machine, and never over the wire: whoever may read the
//! folder has the authority's key already, and nobody else ever gets it. A backup needs no pause of the coordinator: SQLite
//! lets another process read the state of one instant, the authority's files never change, and blobs are never rewritten.

mod archive;
mod backup;
mod error;
mod fsck;
mod manifest;
mod parts;
mod restore;

pub use backup::{BackupOptions, BackupSummary, backup};
pub use error::AdminError;
pub use fsck::{Finding, FindingKind, FindingState, FsckReport, fsck};
pub use parts::UNFINISHED_FOLDER;
pub(crate) use parts::{AUTHORITY_FOLDER, BLOBS_FOLDER, DATABASE_FILE};
pub use restore::{RestoreSummary, restore};

/// Who is told how far a long work is, and may end it.
pub trait Watcher {
    /// A part of the work begins: what is done, and how many bytes it is; none: that is not known.
    fn phase(&mut self, what: &'static str, bytes_total: Option<u64>);

    /// So many bytes more are done; false ends the work, which then leaves nothing behind.
    fn advance(&mut self, bytes: u64) -> bool;
}

impl Watcher for () {
    fn phase(&mut self, _what: &'static str, _bytes_total: Option<u64>) {}

    fn advance(&mut self, _bytes: u64) -> bool {
        true
    }
}

/// Tells `watcher` of `bytes`, and ends by an error if it wants an end.
fn advance(watcher: &mut dyn Watcher, bytes: u64) -> Result<(), AdminError> {
    if watcher.advance(bytes) { Ok(()) } else { Err(AdminError::Interrupted) }
}
