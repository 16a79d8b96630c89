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
mod queue;
mod train;
mod wishes;

pub use file::{DataSpec, Preset, Recipe, RecipeError};
pub use queue::{Priority, QueueWishes};
pub use train::{Precision, RawTrainSpec, Schedule, TrainSpec};
pub use wishes::{
    DeviceWishes, Labels, NodeSelector, ReplicaPolicy, ReplicaWeights, ReplicateWhich, RetainPolicy,
};

use serde::{Deserialize, Serialize};

use crate::{
    id::{CheckpointId, DatasetId, Name},
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
    /// What it begins with; none: random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_from: Option<StartFrom>,
    /// How it stands in the queue.
    #[serde(default, skip_serializing_if = "QueueWishes::is_default")]
    pub queue: QueueWishes,
    /// Which of its checkpoints are kept.
    #[serde(default, skip_serializing_if = "RetainPolicy::is_default")]
    pub retain: RetainPolicy,
}

impl JobSpec {
    /// Whether `checkpoint` is what the job begins with at step 0, by its weights alone.
    pub fn fine_tunes(&self, checkpoint: CheckpointId) -> bool {
        self.start_from == Some(StartFrom { checkpoint, how: StartHow::FineTune })
    }
}

/// A checkpoint of another job that a job begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFrom {
    /// Which.
    pub checkpoint: CheckpointId,
    /// With how much of it.
    pub how: StartHow,
}

/// With how much of a checkpoint a job begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartHow {
    /// With all of it: the run goes on from its step, as if it had never ended.
    Continue,
    /// With its weights: step 0, a fresh optimizer, a text and a recipe of its own.
    FineTune,
}
