//! Why a checkpoint folder cannot be used.

use std::{io, path::PathBuf};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE},
    field::FieldError,
};

/// Why a checkpoint folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is not there or cannot be read.
    #[error(
        "cannot read {}: {source}; a checkpoint folder holds {CONFIG_FILE} and {MODEL_FILE}, readable for this user",
        file.display()
    )]
    Unreadable {
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `config.json` is not what it should be.
    #[error("{} is not a BDH configuration: {problem}; it must hold the six public fields", file.display())]
    Config {
        file: PathBuf,
        /// What is wrong, with its place or field.
        problem: String,
    },
    /// `model.safetensors` is damaged or another kind of file.
    #[error("{} is not a complete safetensors file: {problem}; fetch the checkpoint again", file.display())]
    Damaged { file: PathBuf, problem: String },
    /// A tensor is missing, unknown, or does not fit the configuration.
    #[error("{}: tensor `{tensor}` {problem}", file.display())]
    Tensor {
        file: PathBuf,
        tensor: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The metadata of `model.safetensors` is wrong.
    #[error("{}: metadata {problem}; write the checkpoint again", file.display())]
    Metadata {
        file: PathBuf,
        /// The key and what is wrong with it.
        problem: FieldError,
    },
}
