//! What can go wrong with a backup, a restore or a check.

use std::path::PathBuf;

use hatchery_common::{
    blob::BlobError,
    durable::{FileError, LockError},
    tls::TlsError,
};

use crate::store::StoreError;

/// What can go wrong with a backup, a restore or a check.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// There is no state in the folder.
    #[error(
        "{} holds no coordinator's state: there is no {missing}; --state names the folder, and --home Hatchery's whole home",
        folder.display()
    )]
    NoState {
        folder: PathBuf,
        /// What is missing in it.
        missing: &'static str,
    },
    /// A restore into the folder was cut off.
    #[error(
        "a restore into {} did not finish, so what is there is not whole; restore once more with --replace",
        folder.display()
    )]
    Unfinished { folder: PathBuf },
    /// The file for the backup is there.
    #[error("{} is there already and is not overwritten; name another file, or remove it", path.display())]
    Exists { path: PathBuf },
    /// The folder for the restore is not empty.
    #[error(
        "{} is not empty ({found}); with --replace what is there is put aside and kept",
        folder.display()
    )]
    NotEmpty {
        folder: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// The backup is not what it was when it was made, or never was one.
    #[error("{} is damaged, or no backup of Hatchery's: {why}; nothing was restored", path.display())]
    Damaged { path: PathBuf, why: String },
    /// A newer version made the backup.
    #[error(
        "{} is a backup of format {found} by version {version}, and this version knows formats up to {known}; use that \
         version, or a newer one",
        path.display()
    )]
    TooNew {
        path: PathBuf,
        found: u32,
        /// The newest known here.
        known: u32,
        version: String,
    },
    /// More than a backup can hold.
    #[error(
        "there are too many blobs for one backup: their list would have more than {bytes_max} bytes; leave them out"
    )]
    TooLarge {
        /// Most bytes of a list.
        bytes_max: u64,
    },
    /// It was asked to end.
    #[error("interrupted; nothing was left behind")]
    Interrupted,
    /// Another process has the folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blobs cannot be used.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// The authority cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}
