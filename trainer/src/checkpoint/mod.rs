//! Checkpoint folders, as [`hatchery_common::checkpoint`] describes them: read with distrust, written to last.

mod read;
mod snapshot;
mod write;

use std::{io, path::PathBuf};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, TRAINING_FILE},
    durable::FileError,
};

pub use read::{ModelFolder, TrainingFolder, read_cursor, read_model, read_training};
pub use snapshot::Snapshot;
pub use write::{Writer, Written, write};

use crate::torch_error::first_line;

/// The prefix of an AdamW moment's name, before the weight's.
const EXP_AVG: &str = "exp_avg.";
/// The prefix of an AdamW second moment's name, before the weight's.
const EXP_AVG_SQ: &str = "exp_avg_sq.";

/// The prefix of a weight's name where the model file holds its running mean.
const RAW: &str = "raw.";

/// What is wrong with a checkpoint folder.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file is not there or cannot be read.
    #[error(
        "{0}; a checkpoint folder holds {CONFIG_FILE} and {MODEL_FILE}, and for resuming {OPTIMIZER_FILE} \
         and {TRAINING_FILE}"
    )]
    Read(FileError),
    /// A file does not hold what it should.
    #[error("{} is not usable: {problem}", path.display())]
    Content {
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Writing failed; there is no folder of the final name that is not whole.
    #[error("cannot save the checkpoint: {0}{advice}", advice = write_advice(&.0.source))]
    Write(FileError),
    /// libtorch failed, most likely for want of memory.
    #[error("libtorch: {}", first_line(.0))]
    Torch(#[from] tch::TchError),
}

/// What a person can do about a failed write.
fn write_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some disk space",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose a folder that this user may write to"
        }
        _ => "",
    }
}
