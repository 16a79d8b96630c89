//! How a command ends: a code that scripts can rely on, and a sentence for people.

use std::{fmt, process::ExitCode};

use hatchery_proto::client::CallError;

/// The exit codes, as `hatchery --help` lists them. 2, for wrong usage, is also clap's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The operation failed.
    Failed = 1,
    /// The command line, a recipe or a setting is wrong.
    Usage = 2,
    /// No coordinator answers.
    Unreachable = 3,
    /// What was named is not there.
    NotFound = 4,
    /// The coordinator, or a check, refuses.
    Refused = 5,
    /// Ctrl-C.
    Interrupted = 130,
}

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// For scripts.
    pub(crate) code: Code,
    /// For people; empty when everything has been said already.
    pub(crate) message: String,
}

/// What every command returns.
pub(crate) type Outcome = Result<(), Failure>;

impl Failure {
    /// A failure with this code and sentence.
    pub(crate) fn new(code: Code, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// Something that the person typed or wrote is wrong.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Code::Usage, message)
    }

    /// Something went wrong that has no code of its own.
    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(Code::Failed, message)
    }

    /// Prints the sentence to stderr and gives the code.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("{} {}", console::style("error:").red().bold().for_stderr(), self.message);
        }
        ExitCode::from(self.code as u8)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let code = match &error {
            CallError::Unreachable(_) | CallError::Down(_) => Code::Unreachable,
            CallError::NotFound(_) => Code::NotFound,
            CallError::Refused(_) | CallError::Full(_) | CallError::Denied(_) => Code::Refused,
            CallError::Failed(_) => Code::Failed,
        };
        Self::new(code, error)
    }
}
