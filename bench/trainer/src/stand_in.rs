//! A model that nobody has trained, but of which as many neurons are active as of a trained one: what the engine's
//! speed depends on.

use std::{fs, path::Path, sync::Arc};

use anyhow::Context;
use hatchery_bdh::{Engine, Model, Window, random_at};
use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, TRAINED_BLOCK_KEY},
    model::ModelConfig,
};
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;

/// As the preset seed's.
const TRAINED_BLOCK: &str = "256";
const DEVIATION: f64 = 0.02;
/// Bytes over which activity is measured.
const PROBE_BYTES: u64 = 64;
/// Halvings of the search.
const TRIES: u32 = 8;

/// Makes the checkpoint folder of a model of which a share of `active` neurons is active for a byte.
///
/// Weights are random, but all bytes share one direction, and every neuron shies away from it a little: by how much is
/// searched for.
pub(crate) fn make(config: &ModelConfig, active: f64) -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir().context("cannot make a folder for the stand-in")?;
    let (mut low, mut high) = (0.0, 2.0);
    for _ in 0..TRIES {
        let shyness = f64::midpoint(low, high);
        write(folder.path(), config, shyness)?;
        let model = Arc::new(Model::load(folder.path())?);
        let mut engine = Engine::new(model, Window::Default)?;
        let bytes: Vec<u8> = (0..PROBE_BYTES).map(|draw| (random_at(7, draw) * 256.0) as u8).collect();
        engine.prefill(&bytes);
        if engine.active_share() > active { low = shyness } else { high = shyness }
    }
    Ok(folder)
}

fn write(folder: &Path, config: &ModelConfig, shyness: f64) -> anyhow::Result<()> {
    let width = config.width();
    // Ups and downs, so that the norm's mean does not take the direction away.
    let direction = |d: usize| if d.is_multiple_of(2) { DEVIATION } else { -DEVIATION };
    let mut tensors = Vec::new();
    for (seed, (name, shape)) in config.weights().into_iter().enumerate() {
        let columns = shape.last().copied().unwrap_or(1);
        let count = shape.iter().product::<usize>();
        let value = |index: usize| {
            // Uniform, of the deviation that training starts from.
            let noise = (random_at(seed as u64, index as u64) - 0.5) * 12_f64.sqrt() * DEVIATION;
            let shift = match name {
                "embed.weight" => direction(index % width),
                "encoder" => -shyness * direction(index / columns % width),
                // What the neurons write has nothing of the direction, so that it is still there in the last layer.
                "decoder" if index % width % 2 == 1 => return None,
                _ => 0.0,
            };
            Some((noise + shift) as f32)
        };
        let mut bytes: Vec<u8> = Vec::with_capacity(count * 4);
        let mut before = 0.0_f32;
        for index in 0..count {
            // Equal neighbours cancel out against ups and downs.
            before = value(index).unwrap_or(before);
            bytes.extend(before.to_le_bytes());
        }
        tensors.push((name, shape, bytes));
    }
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = [(TRAINED_BLOCK_KEY.to_owned(), TRAINED_BLOCK.to_owned())].into();
    fs::write(folder.join(MODEL_FILE), safetensors::serialize(views, Some(metadata))?)?;
    fs::write(folder.join(CONFIG_FILE), serde_json::to_string(config)?)?;
    Ok(())
}
