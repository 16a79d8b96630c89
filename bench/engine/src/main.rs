//! How long answers take on one core: a prompt, then new bytes one by one. A probe for work on the engine, built in a
//! moment; `cargo xtask bench generate` measures it beside others.
//!
//! `cargo xtask bench engine [FOLDER|SHARE] [bf16]`: a checkpoint, or random weights of which only a SHARE (1) of the
//! neurons can be active at all, of which about half are.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::Result;
use hatchery_bdh::{Engine, Model, Precision, Window, random_at};
use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE},
    model::{ModelConfig, RawModelConfig},
};
use hatchery_fake_trainer::{Place, weights};

/// Both are taken from its end.
const TEXT: &[u8] = include_bytes!("main.rs");
const PROMPT_BYTES: usize = 200;
const NEW_BYTES: usize = 100;
/// The best of so many runs counts: the machine has other work too.
const RUNS: usize = 7;
const DEVIATION: f64 = 0.02;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let which = arguments.next().unwrap_or_else(|| "1".into());
    let precision =
        if arguments.next().as_deref() == Some("bf16") { Precision::Bf16 } else { Precision::F32 };
    let folder = tempfile::tempdir()?;
    let model = match which.parse() {
        Ok(share) => {
            write_model(folder.path(), share)?;
            Model::load_in(folder.path(), precision)
        }
        Err(_) => Model::load_in(Path::new(&which), precision),
    };
    let model = Arc::new(model?);
    let (prompt, new) = TEXT[TEXT.len() - PROMPT_BYTES - NEW_BYTES..].split_at(PROMPT_BYTES);
    let (mut prompt_ms, mut new_ms) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        let start = Instant::now();
        let mut engine = Engine::new(model.clone(), Window::Default)?;
        engine.prefill(prompt);
        let prefilled = Instant::now();
        for byte in new {
            engine.step(*byte);
        }
        prompt_ms = prompt_ms.min((prefilled - start).as_secs_f64() * 1000.0);
        new_ms = new_ms.min(prefilled.elapsed().as_secs_f64() * 1000.0);
    }
    println!(
        "{PROMPT_BYTES} bytes of prompt: {prompt_ms:.1} ms; {NEW_BYTES} new bytes: {new_ms:.1} ms; together {:.1} ms",
        prompt_ms + new_ms
    );
    Ok(())
}

/// Writes a checkpoint folder; of the encoder, only a `share` of the columns is not zero.
fn write_model(folder: &Path, share: f64) -> Result<()> {
    let config = ModelConfig::new(RawModelConfig {
        n_layer: 4,
        n_embd: 128,
        n_head: 4,
        mlp_internal_dim_multiplier: 64,
        dropout: 0.0,
        vocab_size: 256,
    })?;
    let neurons = config.neurons_per_head() as u64;
    let file = weights(&config, 256, |Place { tensor, tensor_index, index, .. }| {
        let is_active = tensor != "encoder" || random_at(99, index as u64 % neurons) < share;
        // Uniform, with the deviation asked for.
        let value = (random_at(tensor_index, index as u64) - 0.5) * 12_f64.sqrt() * DEVIATION;
        if is_active { value as f32 } else { 0.0 }
    });
    std::fs::write(folder.join(MODEL_FILE), file)?;
    std::fs::write(folder.join(CONFIG_FILE), serde_json::to_string(&config)?)?;
    Ok(())
}
