//! Checkpoints of trainers that train nothing: whole, small, and true about who wrote them.

use std::{collections::HashMap, fs, path::PathBuf};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, TRAINED_BLOCK_KEY, TRAINING_FILE, folder_name},
    cursor::{LossCurve, Patience, TrainingCursor},
    id::{Epoch, JobId},
    trainer::{AttemptOrder, Metrics},
};
use safetensors::{Dtype, tensor::TensorView};

/// What the optimizer's file says: which attempt wrote the checkpoint, and at which step.
pub(crate) fn signature(job: JobId, epoch: Epoch, step: u64) -> String {
    format!("{job} {epoch} {step}")
}

/// The figures of every checkpoint.
pub(crate) fn metrics() -> Metrics {
    Metrics { first_loss: Some(5.5), train_loss: Some(2.0), ..Metrics::default() }
}

/// Writes the checkpoint of `step` under its final name.
pub(crate) fn write(order: &AttemptOrder, step: u64) -> std::io::Result<PathBuf> {
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
    fs::write(unfinished.join(CONFIG_FILE), serde_json::to_vec(&order.model)?)?;
    fs::write(unfinished.join(MODEL_FILE), model(order, step))?;
    fs::write(unfinished.join(OPTIMIZER_FILE), signature(order.job, order.epoch, step))?;
    fs::write(unfinished.join(TRAINING_FILE), serde_json::to_vec(&cursor)?)?;
    fs::rename(&unfinished, &folder)?;
    Ok(folder)
}

/// The step of a checkpoint folder.
pub(crate) fn step_of(folder: &std::path::Path) -> std::io::Result<u64> {
    let cursor: TrainingCursor = serde_json::from_slice(&fs::read(folder.join(TRAINING_FILE))?)?;
    Ok(cursor.step)
}

/// Weights that differ from step to step, in the shapes of the order's model.
fn model(order: &AttemptOrder, step: u64) -> Vec<u8> {
    let raw = order.model.raw();
    let (embd, head, vocab) = (raw.n_embd as usize, raw.n_head as usize, raw.vocab_size as usize);
    let neurons = embd * raw.mlp_internal_dim_multiplier as usize / head;
    let shapes = [
        ("embed.weight", vec![vocab, embd]),
        ("encoder", vec![head, embd, neurons]),
        ("encoder_v", vec![head, embd, neurons]),
        ("decoder", vec![head * neurons, embd]),
        ("lm_head", vec![embd, vocab]),
    ];
    let tensors = shapes.map(|(name, shape)| {
        let count: usize = shape.iter().product();
        let weight = |index: usize| ((index as u64 * 7 + step * 13) % 19) as f32 * 0.01 - 0.09;
        let bytes: Vec<u8> = (0..count).flat_map(|index| weight(index).to_le_bytes()).collect();
        (name, shape, bytes)
    });
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the length fits the shape"))
    });
    // One entry alone: the order of several would be the hash's.
    let metadata = HashMap::from([(TRAINED_BLOCK_KEY.to_owned(), order.train.raw().block.to_string())]);
    safetensors::serialize(views, Some(metadata)).expect("plain tensors can be written")
}
