//! How long a model of random weights takes: a prompt, then new bytes one by one, on one core.
//!
//! `cargo run --release -p hatchery-bdh --example speed [SHARE]`: SHARE of the neurons can be active at all (1), of
//! which about half are.

use std::{collections::HashMap, error::Error, path::Path, sync::Arc, time::Instant};

use hatchery_bdh::{Engine, Model, Window, random_at};
use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, TRAINED_BLOCK_KEY},
    model::{ModelConfig, RawModelConfig},
};
use safetensors::{Dtype, tensor::TensorView};

const PROMPT_BYTES: usize = 200;
const NEW_BYTES: usize = 100;
/// The best of so many runs counts: the machine has other work too.
const RUNS: usize = 7;
const DEVIATION: f64 = 0.02;

fn main() -> Result<(), Box<dyn Error>> {
    let share = std::env::args().nth(1).map_or(Ok(1.0), |text| text.parse())?;
    let config = ModelConfig::new(RawModelConfig {
        n_layer: 4,
        n_embd: 128,
        n_head: 4,
        mlp_internal_dim_multiplier: 64,
        dropout: 0.0,
        vocab_size: 256,
    })?;
    let folder = tempfile::tempdir()?;
    write_model(folder.path(), &config, share)?;
    let model = Arc::new(Model::load(folder.path())?);
    let prompt: Vec<u8> = (0..PROMPT_BYTES as u64).map(|i| (random_at(7, i) * 256.0) as u8).collect();
    let (mut prefill_ms, mut new_ms) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        let mut engine = Engine::new(model.clone(), Window::Default)?;
        let start = Instant::now();
        engine.prefill(&prompt);
        let prefilled = Instant::now();
        for byte in &prompt[..NEW_BYTES] {
            engine.step(*byte);
        }
        prefill_ms = prefill_ms.min((prefilled - start).as_secs_f64() * 1000.0);
        new_ms = new_ms.min(prefilled.elapsed().as_secs_f64() * 1000.0);
    }
    println!(
        "{PROMPT_BYTES} bytes of prompt: {prefill_ms:.1} ms; {NEW_BYTES} new bytes: {new_ms:.1} ms; together {:.1} ms",
        prefill_ms + new_ms
    );
    Ok(())
}

/// Writes a checkpoint folder; of the encoder, only a `share` of the columns is not zero.
fn write_model(folder: &Path, config: &ModelConfig, share: f64) -> Result<(), Box<dyn Error>> {
    let neurons = config.neurons_per_head() as u64;
    let mut tensors = Vec::new();
    for (seed, (name, shape)) in config.weights().into_iter().enumerate() {
        let count = shape.iter().product::<usize>() as u64;
        let value = |index: u64| {
            let active = name != "encoder" || random_at(99, index % neurons) < share;
            // Uniform, with the deviation asked for.
            let value = (random_at(seed as u64, index) - 0.5) * 12_f64.sqrt() * DEVIATION;
            if active { value as f32 } else { 0.0 }
        };
        let bytes: Vec<u8> = (0..count).flat_map(|index| value(index).to_le_bytes()).collect();
        tensors.push((name, shape, bytes));
    }
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()?;
    let metadata = HashMap::from([(TRAINED_BLOCK_KEY.to_owned(), "256".to_owned())]);
    std::fs::write(folder.join(MODEL_FILE), safetensors::serialize(views, Some(metadata))?)?;
    std::fs::write(folder.join(CONFIG_FILE), serde_json::to_string(config)?)?;
    Ok(())
}
