//! What can go wrong with the store, and what to do then.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("cannot open the database {}: {source}; check that the folder exists and can be written", path.display())]
    Open { path: PathBuf, source: rusqlite::Error },
    /// The file is damaged, or no database at all.
    #[error(
        "the database {} is damaged: {detail}; nothing was changed; stop the coordinator, then run \
         `hatchery admin fsck` to see what can be repaired, or `hatchery admin restore` to restore a backup",
        path.display()
    )]
    Corrupt { path: PathBuf, detail: String },
    /// A newer version wrote the file.
    #[error(
        "the database {} has format {found}, but this version reads formats up to {known}; start the \
         version that wrote it, or a newer one",
        path.display()
    )]
    TooNew {
        path: PathBuf,
        found: i64,
        /// The newest format known here.
        known: i64,
    },
    /// There is no room for the changes.
    #[error("no space left for the database {}: {source}; nothing was changed; free some space and try again", path.display())]
    Full { path: PathBuf, source: rusqlite::Error },
    /// The disk does not do as it is told.
    #[error("the disk of the database {} fails: {source}; stop the coordinator, check the disk, start again", path.display())]
    Io { path: PathBuf, source: rusqlite::Error },
    /// A change does not fit what is stored: another epoch, another phase, a taken device. I3 and I4.
    #[error("event {kind} contradicts the database: {why}; nothing was changed")]
    Stale {
        kind: &'static str,
        /// What does not fit.
        why: String,
    },
    /// A row holds something that this version cannot read.
    #[error("table {table} of the database {} has an unreadable row: {why}", path.display())]
    Unreadable { path: PathBuf, table: &'static str, why: String },
    /// Anything else that SQLite says.
    #[error("error in the database {}: {source}", path.display())]
    Other { path: PathBuf, source: rusqlite::Error },
}

impl StoreError {
    /// Sorts what SQLite says about the file at `path`.
    pub(super) fn of(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { path, source },
            Some(ErrorCode::SystemIoFailure) => Self::Io { path, source },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Corrupt { path, detail: source.to_string() }
            }
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                Self::Open { path, source }
            }
            _ => Self::Other { path, source },
        }
    }
}
