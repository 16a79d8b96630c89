//! Checkpoints that nobody has trained: whole, small, and true about who wrote them.

use std::{collections::HashMap, fs, io, path::Path};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, TRAINED_BLOCK_KEY, TRAINING_FILE, folder_name},
    cursor::{LossCurve, Patience, TrainingCursor},
    model::ModelConfig,
    trainer::{AttemptOrder, Metrics, TrainerEvent},
};
use safetensors::{Dtype, tensor::TensorView};

/// The figures of every checkpoint.
pub fn metrics() -> Metrics {
    Metrics { first_loss: Some(5.5), train_loss: Some(2.0), ..Metrics::default() }
}

/// Writes the checkpoint of `step`, in place of one that is there, and gives the event that tells of it. `moments` is the
/// optimizer's file, `scale` a factor of every weight.
pub fn write(order: &AttemptOrder, step: u64, moments: &[u8], scale: f32) -> io::Result<TrainerEvent> {
    let folder = order.checkpoints.join(folder_name(step));
    let unfinished = order.checkpoints.join(format!(".{}", folder_name(step)));
    fs::create_dir_all(&unfinished)?;
    let cursor = TrainingCursor {
        version: 1,
        step,
        train: order.train.clone(),
        corpus_bytes: 1,
        metrics: metrics(),
        curve: LossCurve::default(),
        patience: Patience::default(),
        parent: None,
    };
    // They differ from step to step.
    let weight = |place: Place| (((place.index as u64 * 7 + step * 13) % 19) as f32 * 0.01 - 0.09) * scale;
    fs::write(unfinished.join(CONFIG_FILE), serde_json::to_vec(&order.model)?)?;
    fs::write(unfinished.join(MODEL_FILE), weights(&order.model, order.train.raw().block, weight))?;
    fs::write(unfinished.join(OPTIMIZER_FILE), moments)?;
    fs::write(unfinished.join(TRAINING_FILE), serde_json::to_vec(&cursor)?)?;
    if folder.exists() {
        // Of an earlier trainer of this attempt.
        fs::remove_dir_all(&folder)?;
    }
    fs::rename(&unfinished, &folder)?;
    Ok(TrainerEvent::Checkpoint { folder, step, metrics: metrics() })
}

/// The step of a checkpoint folder.
pub fn step_of(folder: &Path) -> io::Result<u64> {
    let cursor: TrainingCursor = serde_json::from_slice(&fs::read(folder.join(TRAINING_FILE))?)?;
    Ok(cursor.step)
}

/// Where a weight stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub tensor: &'static str,
    /// Of the tensor, in their order from 0.
    pub tensor_index: u64,
    /// Within the tensor.
    pub index: usize,
    /// Weights in a row of the tensor.
    pub columns: usize,
}

/// The file of a model's weights, each by its place, in their order.
pub fn weights(model: &ModelConfig, block: u32, mut weight: impl FnMut(Place) -> f32) -> Vec<u8> {
    let tensors: Vec<_> = (0..)
        .zip(model.weights())
        .map(|(tensor_index, (tensor, shape))| {
            let count: usize = shape.iter().product();
            let columns = shape.last().copied().unwrap_or(1);
            let places = (0..count).map(|index| Place { tensor, tensor_index, index, columns });
            let bytes: Vec<u8> = places.flat_map(|place| weight(place).to_le_bytes()).collect();
            (tensor, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the length fits the shape"))
    });
    // One entry alone: the order of several would be the hash's.
    let metadata = HashMap::from([(TRAINED_BLOCK_KEY.to_owned(), block.to_string())]);
    safetensors::serialize(views, Some(metadata)).expect("plain tensors can be written")
}

/// Bytes without any pattern, a multiple of eight: no two seeds share a piece.
pub fn noise(bytes: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..bytes / 8).flat_map(|_| word().to_le_bytes()).collect()
}
