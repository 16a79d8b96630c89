//! Why a call fails, and its gRPC status: in one place, so that the same cause always has the same code.

use hatchery_common::{field::FieldError, recipe::SpecError, tls::TlsError};
use hatchery_scheduler::Rejected;
use tonic::{Code, Status};

use crate::{
    api::lookup::LookupError,
    core::{handle::CommandError, store_thread::Stopped},
    sessions::generations::GenerateError,
};

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// A field is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A job's spec cannot be used by this version.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// What is named is not there, or is more than one.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The event loop refused.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// No node can answer.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// What was watched is there no longer.
    #[error("{what} {id} no longer exists")]
    Gone { what: &'static str, id: String },
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

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> Self {
        Self::Command(rejected.into())
    }
}

impl From<TlsError> for ApiError {
    fn from(error: TlsError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = match &error {
            ApiError::Field(_) | ApiError::Spec(_) => Code::InvalidArgument,
            ApiError::Lookup(error) => match error {
                LookupError::NotFound { .. } => Code::NotFound,
                LookupError::Ambiguous { .. } => Code::InvalidArgument,
            },
            ApiError::Command(error) => match error {
                CommandError::Rejected(rejected) => code_of(rejected),
                CommandError::DiskFull(_) => Code::ResourceExhausted,
                CommandError::NotDurable(_) | CommandError::InvariantBroken(_) => Code::Internal,
                CommandError::Stopping => Code::Unavailable,
            },
            ApiError::Generate(error) => match error {
                GenerateError::NotReady { .. } => Code::FailedPrecondition,
                GenerateError::TooMany | GenerateError::Unread => Code::ResourceExhausted,
                GenerateError::NodeLeft { .. } | GenerateError::Silent { .. } => Code::Unavailable,
                GenerateError::Failed { .. } | GenerateError::OrderBroken { .. } => Code::Internal,
            },
            ApiError::Gone { .. } => Code::NotFound,
            ApiError::BlobsMissing { .. } => Code::FailedPrecondition,
            ApiError::Internal(_) => Code::Internal,
            ApiError::Stopped(_) => Code::Unavailable,
        };
        Self::new(code, error.to_string())
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
