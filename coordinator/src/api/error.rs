//! How a refusal is told over the wire: one place, so that the same cause always has the same code.

use hatchery_common::field::FieldError;
use hatchery_scheduler::Rejected;
use tonic::{Code, Status};

use crate::{
    api::lookup::LookupError,
    core::{handle::RequestError, store_thread::Stopped},
    sessions::generations::GenerateError,
};

/// What a caller asked for before it is even put to the event loop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// A field is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// What is named is not there, or is more than one.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The event loop refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No node can answer.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Blobs that a manifest names are not here.
    #[error(
        "{missing} of the {count} blobs named are not here, the first is {first}; put them with Blobs/Put, then try again"
    )]
    BlobsMissing { missing: usize, count: usize, first: String },
    /// The coordinator cannot do it, whoever asks.
    #[error("{0}")]
    Internal(String),
    /// The coordinator is stopping.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<Rejected> for Refusal {
    fn from(rejected: Rejected) -> Self {
        Self::Request(rejected.into())
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::Field(_) => Code::InvalidArgument,
            Refusal::Lookup(error) => match error {
                LookupError::NotFound { .. } => Code::NotFound,
                LookupError::Ambiguous { .. } => Code::InvalidArgument,
            },
            Refusal::Request(error) => match error {
                RequestError::Rejected(rejected) => code_of(rejected),
                RequestError::DiskFull(_) => Code::ResourceExhausted,
                RequestError::NotDurable(_) => Code::Internal,
                RequestError::Stopping => Code::Unavailable,
            },
            Refusal::Generate(error) => match error {
                GenerateError::NotReady { .. } => Code::FailedPrecondition,
                GenerateError::TooMany | GenerateError::Unread => Code::ResourceExhausted,
                GenerateError::NodeLeft { .. } | GenerateError::Silent { .. } => Code::Unavailable,
                GenerateError::Failed { .. } | GenerateError::OrderBroken { .. } => Code::Internal,
            },
            Refusal::BlobsMissing { .. } => Code::FailedPrecondition,
            Refusal::Internal(_) => Code::Internal,
            Refusal::Stopped(_) => Code::Unavailable,
        };
        Self::new(code, refusal.to_string())
    }
}

fn code_of(rejected: &Rejected) -> Code {
    match rejected {
        Rejected::Field(_) => Code::InvalidArgument,
        Rejected::NotFound { .. } => Code::NotFound,
        Rejected::RequestReused { .. } => Code::AlreadyExists,
        Rejected::Fenced { .. } => Code::Aborted,
        Rejected::AlreadyEnded { .. } | Rejected::WrongPhase { .. } | Rejected::NothingActivated { .. } => {
            Code::FailedPrecondition
        }
        Rejected::BadToken => Code::PermissionDenied,
        Rejected::BadCertificate => Code::Unauthenticated,
        Rejected::Full { .. } => Code::ResourceExhausted,
    }
}
