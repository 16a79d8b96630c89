//! Why a call failed, by what the caller can do about it.

use std::{error::Error as _, fmt};

use hatchery_common::field::FieldError;
use tonic::{Code, Status};

use super::{ConnectError, connect_error};

/// Why a call failed. Shown, it is a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No coordinator answered, or the connection was lost on the way; the same call may work later.
    #[error("{0}")]
    Unreachable(String),
    /// Where the coordinator should be there is a machine that says of itself that nobody listens: it is down.
    #[error("{0}")]
    Down(String),
    /// What was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// The coordinator has understood and does not do it; a changed call may work.
    #[error("{0}")]
    Refused(String),
    /// There is no room for it now: a disk is full, or a limit of the fleet is reached; the same call may work later.
    #[error("{0}")]
    Full(String),
    /// The caller is not who may do that, or the coordinator not who was meant.
    #[error("{0}")]
    Denied(String),
    /// Something went wrong on either side.
    #[error("{0}")]
    Failed(String),
}

impl CallError {
    /// Whether the same call may work later. Calls that change something carry a request id or are harmless twice.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Down(_))
    }

    pub(crate) fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// The answer has a field that makes no sense.
    pub(crate) fn unusable(error: FieldError) -> Self {
        Self::Failed(format!(
            "the coordinator sent an invalid response: {error}; are both sides of the same release?"
        ))
    }
}

impl From<ConnectError> for CallError {
    fn from(error: ConnectError) -> Self {
        match &error {
            ConnectError::NobodyListens { address } => Self::Down(format!(
                "no coordinator answers at {address}: start one with `hatchery up`, or point to another with --coordinator"
            )),
            _ if error.is_refusal_by_the_machine() => Self::Down(format!("no coordinator answers: {error}")),
            _ if error.is_absence() => Self::Unreachable(format!("no coordinator answers: {error}")),
            ConnectError::WrongAuthority { .. } | ConnectError::CertificateRefused { .. } => {
                Self::Denied(error.to_string())
            }
            ConnectError::Several(errors)
                if errors.iter().any(|error| matches!(Self::from(error.clone()), Self::Denied(_))) =>
            {
                Self::Denied(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        if let Some(error) = connect_error(&status) {
            return error.into();
        }
        // Only what went wrong on this side has a source; what the coordinator says has none.
        if status.source().is_some() {
            return Self::Unreachable(format!(
                "the connection to the coordinator was lost ({}); try again",
                status.message()
            ));
        }
        let said = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        match status.code() {
            Code::Unavailable => Self::Unreachable(said),
            Code::NotFound => Self::NotFound(said),
            Code::InvalidArgument
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange => Self::Refused(said),
            Code::ResourceExhausted => Self::Full(said),
            Code::Unauthenticated | Code::PermissionDenied => Self::Denied(said),
            Code::Unimplemented => Self::Failed(format!(
                "the coordinator does not know this call; are both sides of the same release? ({said})"
            )),
            _ => Self::Failed(said),
        }
    }
}
