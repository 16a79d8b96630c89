//! Why a file is not imported.

use std::{io, path::PathBuf};

use hatchery_common::{durable::FileError, field::FieldError};

use crate::load::LoadError;

/// Why a file is not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file is not there or cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Unreadable {
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file asks for something to be run, or to be made that is no part of a checkpoint.
    #[error(
        "{} asks to run `{name}`; refused, as code in a file is never run. If you trust the file, load it \
         in Python and save only the state dict, as safetensors or with torch.save",
        file.display()
    )]
    Forbidden { file: PathBuf, name: String },
    /// The file is of the form before torch 1.6.
    #[error(
        "{} is not a zip archive: it is from torch.save before 1.6, or not a checkpoint; load it in Python \
         and save it again with a newer torch.save, or as safetensors",
        file.display()
    )]
    OldForm { file: PathBuf },
    /// The file is damaged, or not of the public form.
    #[error("{} is not a checkpoint of the public code: {problem}", file.display())]
    Form {
        file: PathBuf,
        /// What is wrong, with its place.
        problem: String,
    },
    /// A weight is missing, unknown, or does not fit the configuration.
    #[error("{}: tensor `{tensor}` {problem}", file.display())]
    Tensor {
        file: PathBuf,
        /// The tensor's public name.
        tensor: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The configuration is wrong, or does not say all.
    #[error("{}: the configuration's `{}` {}", file.display(), problem.field, problem.problem)]
    Config {
        file: PathBuf,
        /// The field, and what is wrong with it.
        problem: FieldError,
    },
    /// A safetensors file or the `config.json` beside it is wrong.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The folder to be written is there already, with something in it.
    #[error("{} already exists and is not empty; choose a new folder", folder.display())]
    Occupied { folder: PathBuf },
    /// The folder cannot be written; it is not there, or whole.
    #[error("cannot save the checkpoint: {0}")]
    Write(#[from] FileError),
}
