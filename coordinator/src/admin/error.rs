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
        "{} is not a coordinator's state folder: it has no {missing}; set the folder with --state, or \
         Hatchery's home with --home",
        folder.display()
    )]
    NoState {
        folder: PathBuf,
        /// What is missing in it.
        missing: &'static str,
    },
    /// A restore into the folder was cut off.
    #[error(
        "a restore into {} did not finish, so its contents are incomplete; restore again with --replace",
        folder.display()
    )]
    Unfinished { folder: PathBuf },
    /// The file for the backup is there.
    #[error("{} already exists and is never overwritten; choose another file, or delete it", path.display())]
    Exists { path: PathBuf },
    /// The folder for the restore is not empty.
    #[error(
        "{} is not empty ({found}); with --replace its contents are set aside and kept",
        folder.display()
    )]
    NotEmpty {
        folder: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// The backup is not what it was when it was made, or never was one.
    #[error("{} is damaged, or not a Hatchery backup: {why}; nothing was restored", path.display())]
    Damaged { path: PathBuf, why: String },
    /// A newer version made the backup.
    #[error(
        "{} is a backup of format {found} by version {version}, but this version reads formats up to \
         {known}; use that version or a newer one",
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
    #[error("too many blobs for one backup: their list exceeds {bytes_max} bytes; omit --with-blobs")]
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
