//! Recipes: how a model is to be trained, as people write it and as Hatchery passes it on.
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
mod read;
mod train;
mod wishes;

pub use file::{DataSpec, JobSpec, Note, Preset, Recipe, RecipeError, StartFrom, StartHow};
pub use queue::{Priority, QueueWishes};
pub use read::{Reader, SPEC_BYTES_MAX, SpecError};
pub use train::{Precision, RawTrainSpec, Schedule, TrainSpec};
pub use wishes::{
    DeviceWishes, Labels, NodeSelector, ReplicaPolicy, ReplicaWeights, ReplicateWhich, RetainPolicy,
};
