//! Why a checkpoint or a dataset cannot be had, and whether trying again helps.

use hatchery_common::{blob::BlobError, durable::FileError, field::FieldError, trainer::FailureCause};
use hatchery_net::{swarm::FetchError as SwarmError, transfer::TransferError};
use hatchery_proto::client::CallError;

use super::store::CheckpointStoreError;

/// Why something cannot be had now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the coordinator: {0}")]
    Call(#[from] CallError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Store(#[from] CheckpointStoreError),
    #[error("the coordinator's manifest is invalid: {0}")]
    Description(#[from] FieldError),
    #[error("cannot assemble the corpus: {0}")]
    Corpus(#[from] CorpusError),
    #[error(transparent)]
    Swarm(#[from] SwarmError),
}

impl FetchError {
    /// What kind of failure this is, if trying again here makes no sense.
    pub(crate) fn cause(&self) -> Option<FailureCause> {
        match self {
            Self::Call(CallError::NotFound(_))
            | Self::Description(_)
            | Self::Swarm(SwarmError::Size { .. })
            | Self::Corpus(CorpusError::Length { .. }) => Some(FailureCause::BadInput),
            Self::Transfer(TransferError::Blob(error))
            | Self::Swarm(SwarmError::Blob(error))
            | Self::Store(CheckpointStoreError::Blob(error))
            | Self::Corpus(CorpusError::Blob(error)) => of_store(error),
            Self::Store(CheckpointStoreError::File(error)) | Self::Corpus(CorpusError::File(error)) => {
                error.is_full().then_some(FailureCause::Storage)
            }
            Self::Call(_) | Self::Transfer(_) | Self::Swarm(_) => None,
        }
    }

    /// Whether there is no room for it here.
    pub(super) fn is_for_want_of_room(&self) -> bool {
        self.cause() == Some(FailureCause::Storage)
    }

    /// Whether the coordinator lacks a blob that belongs to something it knows: it may have found it damaged, and get
    /// it again from a node that holds it.
    pub(crate) fn is_lost_blob(&self) -> bool {
        matches!(self, Self::Transfer(TransferError::Call(CallError::NotFound(_))))
    }
}

fn of_store(error: &BlobError) -> Option<FailureCause> {
    error.is_for_want_of_room().then_some(FailureCause::Storage)
}

/// Why a corpus cannot be put together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CorpusError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("it has {found} bytes, but its manifest says {expected}")]
    Length { found: u64, expected: u64 },
}
