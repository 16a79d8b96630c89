//! What can go wrong with keys and certificates.

use crate::durable::FileError;

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A certificate, key or request cannot be made.
    #[error("cannot create the {what}: {source}")]
    Make {
        /// What was to be made.
        what: &'static str,
        /// Why not.
        source: rcgen::Error,
    },
    /// A certificate, key or request that was given cannot be used.
    #[error("the {what} cannot be used: {problem}")]
    Unusable {
        /// What was given.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// TLS refuses the material.
    #[error("TLS rejects the {what}: {source}")]
    Rustls {
        /// What was given.
        what: &'static str,
        /// Why it is refused.
        source: rustls::Error,
    },
}

impl TlsError {
    pub(super) fn unusable(what: &'static str, problem: impl ToString) -> Self {
        Self::Unusable { what, problem: problem.to_string() }
    }

    pub(super) fn make(what: &'static str) -> impl FnOnce(rcgen::Error) -> Self {
        move |source| Self::Make { what, source }
    }

    pub(super) fn rustls(what: &'static str) -> impl FnOnce(rustls::Error) -> Self {
        move |source| Self::Rustls { what, source }
    }
}
