//! Recipes: how a model is to be trained, as people write it and as the house passes it on.
//!
//! A recipe is TOML, or a preset, or both, with single keys set over it:
//!
//! ```toml
//! preset = "seed"
//! data = ["notes/"]
//! [train]
//! steps = 2000
//! lr = 5e-4
//! ```

mod file;
mod train;
mod wishes;

pub use file::{DataSpec, Preset, Recipe, RecipeError};
pub use train::{Precision, RawTrainSpec, Schedule, TrainSpec};
pub use wishes::{DeviceWishes, Labels, NodeSelector, ReplicaPolicy, ReplicateWhich};

use serde::{Deserialize, Serialize};

use crate::{
    id::{DatasetId, Name},
    model::ModelConfig,
};

/// A job as it is submitted: everything that `decide` and the trainer need to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// What people call it; need not be unique.
    pub name: Name,
    /// The text to learn.
    pub dataset: DatasetId,
    /// The model's shape.
    pub model: ModelConfig,
    /// Steps, batch, optimizer and so on.
    pub train: TrainSpec,
    /// Where it may run.
    pub devices: DeviceWishes,
    /// Where its checkpoints go.
    pub replicate: ReplicaPolicy,
}
