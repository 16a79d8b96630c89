//! A model that nobody has trained, but of which as many neurons are active as of a trained one: what the engine's
//! speed depends on.

use std::{fs, path::Path, sync::Arc};

use anyhow::Context;
use hatchery_bdh::{Engine, Model, Window, random_at};
use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE},
    model::ModelConfig,
};
use hatchery_fake_trainer::{Place, weights};
use tempfile::TempDir;

/// As the preset seed's.
const TRAINED_BLOCK: u32 = 256;
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
    let mut before = 0.0_f32;
    let file = weights(config, TRAINED_BLOCK, |Place { tensor, tensor_index, index, columns }| {
        // Uniform, of the deviation that training starts from.
        let noise = (random_at(tensor_index, index as u64) - 0.5) * 12_f64.sqrt() * DEVIATION;
        let shift = match tensor {
            "embed.weight" => direction(index % width),
            "encoder" => -shyness * direction(index / columns % width),
            // What the neurons write has nothing of the direction, so that it is still there in the last layer: equal
            // neighbours cancel out against ups and downs.
            "decoder" if index % width % 2 == 1 => return before,
            _ => 0.0,
        };
        before = (noise + shift) as f32;
        before
    });
    fs::write(folder.join(MODEL_FILE), file)?;
    fs::write(folder.join(CONFIG_FILE), serde_json::to_string(config)?)?;
    Ok(())
}
