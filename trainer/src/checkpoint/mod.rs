//! Checkpoint folders, as [`hatchery_common::checkpoint`] describes them: read with distrust, written to last.

mod read;
mod snapshot;
mod write;

use std::{io, path::PathBuf};

pub use read::{ModelFolder, read_cursor, read_model, read_training};
pub use snapshot::Snapshot;
pub use write::{Writer, Written, write};

use crate::failure::write_advice;

/// The prefix of an AdamW moment's name, before the weight's.
const EXP_AVG: &str = "exp_avg.";
/// The prefix of an AdamW second moment's name, before the weight's.
const EXP_AVG_SQ: &str = "exp_avg_sq.";

/// What is wrong with a checkpoint folder.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is not there or cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is not usable: {problem}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Writing failed; there is no folder of the final name that is not whole.
    #[error("cannot write the checkpoint {}: {source}{}", path.display(), write_advice(source))]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// libtorch failed, most likely for want of memory.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}
