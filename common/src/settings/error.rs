//! What can be wrong with settings.

use std::path::PathBuf;

use crate::{durable::FileError, field::FieldError, settings::Source};

/// What can be wrong with settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not TOML.
    #[error("{} is not valid TOML: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        problem: String,
    },
    /// A key that is not known, or a value that is not of its type.
    #[error("{field} (from {from})")]
    Field {
        /// The key, and what is wrong with it.
        field: FieldError,
        /// Where it came from.
        from: Source,
    },
    /// A variable that looks like a setting, and is none.
    #[error("environment variable {name}: {problem}")]
    Variable {
        /// The variable.
        name: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}
