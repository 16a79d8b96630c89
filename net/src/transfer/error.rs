//! What can go wrong with a transfer.

use std::path::PathBuf;

use hatchery_common::{
    blob::{BlobError, ManifestError},
    durable::FileError,
};
use hatchery_proto::client::CallError;
use tonic::Status;

/// What can go wrong with a transfer. What was transferred until then is kept.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The other side does not answer, or says no.
    #[error(transparent)]
    Call(#[from] CallError),
    /// This side's store cannot take or give it.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A file that was to be sent cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that was to be sent is not what it was.
    #[error("{}: changed since it was first read; try again once the file no longer changes", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The other side sent something else than it should.
    #[error("the other side breaks the protocol: {0}")]
    WrongAnswer(String),
}

impl TransferError {
    /// Whether the same transfer may work later.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Call(error) => error.is_retriable(),
            Self::Blob(error) => matches!(error, BlobError::Busy { .. } | BlobError::Incomplete { .. }),
            Self::File(_) | Self::Changed { .. } | Self::WrongAnswer(_) => false,
        }
    }

    pub(super) fn wrong(problem: impl Into<String>) -> Self {
        Self::WrongAnswer(problem.into())
    }
}

impl From<Status> for TransferError {
    fn from(status: Status) -> Self {
        Self::Call(status.into())
    }
}

impl From<ManifestError> for TransferError {
    fn from(error: ManifestError) -> Self {
        Self::WrongAnswer(error.to_string())
    }
}

/// What a caller is told of an error of the store.
pub(crate) fn status_of(error: &BlobError) -> Status {
    let said = error.to_string();
    match error {
        BlobError::NotFound { .. } => Status::not_found(said),
        BlobError::Present { .. } => Status::already_exists(said),
        BlobError::WrongPiece { .. } | BlobError::Manifest(_) => Status::invalid_argument(said),
        BlobError::Full { .. } | BlobError::Quota { .. } => Status::resource_exhausted(said),
        BlobError::Busy { .. } | BlobError::Incomplete { .. } => {
            Status::aborted(format!("{said}; try again"))
        }
        BlobError::Corrupt { .. } => Status::data_loss(said),
        BlobError::File(_) => Status::internal(said),
    }
}
