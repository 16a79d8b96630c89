//! Why a run cannot go on, as a class for the agent and as text for a person.

use hatchery_common::{field::FieldError, trainer::FailureCause};
use tch::TchError;

pub use crate::torch_error::first_line;
use crate::{checkpoint::CheckpointError, data::DataError, torch_error::lacks_memory};

/// A failure with its class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub cause: FailureCause,
    /// What happened and what to do.
    pub message: String,
}

impl Failure {
    /// A failure of class `cause`.
    pub fn new(cause: FailureCause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into() }
    }

    /// The input cannot be used.
    pub fn bad_input(message: impl ToString) -> Self {
        Self::new(FailureCause::BadInput, message.to_string())
    }
}

impl From<TchError> for Failure {
    fn from(error: TchError) -> Self {
        let line = first_line(&error);
        if lacks_memory(&error) {
            Self::new(
                FailureCause::OutOfMemory,
                format!("model and batch do not fit into memory: {line}; reduce train.batch or train.block"),
            )
        } else {
            Self::new(FailureCause::Crashed, format!("libtorch failed: {line}"))
        }
    }
}

impl From<FieldError> for Failure {
    fn from(error: FieldError) -> Self {
        Self::bad_input(error)
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        match error {
            DataError::Gather(_) => Self::new(FailureCause::Storage, error.to_string()),
            _ => Self::bad_input(error),
        }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Write(_) => Self::new(FailureCause::Storage, error.to_string()),
            CheckpointError::Torch(error) => error.into(),
            _ => Self::bad_input(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_from_other_faults() {
        let cause = |text: &str| Failure::from(TchError::Torch(text.into())).cause;
        assert_eq!(cause("CUDA out of memory. Tried to allocate 2.00 GiB"), FailureCause::OutOfMemory);
        assert_eq!(
            cause(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
            ),
            FailureCause::OutOfMemory
        );
        assert_eq!(
            cause("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            FailureCause::OutOfMemory
        );
        assert_eq!(cause("CUDA error: an illegal memory access"), FailureCause::Crashed);
        let failure = Failure::from(TchError::Torch("first line\nstack".into()));
        assert_eq!(failure.message, "libtorch failed: first line");
    }
}
