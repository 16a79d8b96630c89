//! The reference run from start to sample: the row to set beside the others'.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::Context;
use hatchery_bdh::{Engine, Generation, Model, Window};
use hatchery_common::{device::DeviceKind, generate::SamplingParams};
use serde::Serialize;

use super::{
    card::{Figures, Watch},
    preset::{Heard, Preset},
};

const PROMPT_BYTES: usize = 32;
const SAMPLE_BYTES: usize = 200;

/// What became of it.
#[derive(Debug, Serialize)]
pub(super) struct Full {
    preset: String,
    steps: u64,
    secs: f64,
    /// Over the last seconds of the run, validation and checkpoints left out.
    steps_per_sec: f64,
    memory_bytes: u64,
    first_loss: f64,
    train_loss: f64,
    validation_loss: f64,
    card: Option<Figures>,
    sample: String,
    /// The last one, which is there as long as the run's folder is.
    #[serde(skip)]
    pub(super) checkpoint: PathBuf,
}

impl Full {
    /// Trains `preset` for `steps` steps, with checkpoints in `folder`, and lets the last one go on from the text's start.
    pub(super) fn measure(preset: &Preset, steps: u32, folder: &Path) -> anyhow::Result<Self> {
        let watch = (preset.device.kind == DeviceKind::Cuda).then(|| Watch::start(preset.device.index));
        let begun = Instant::now();
        let run = preset.train(&[format!("train.steps={steps}")], folder, None);
        let secs = begun.elapsed().as_secs_f64();
        let card = watch.and_then(Watch::stop);
        let Heard { progress, validation_loss, mut checkpoints } = run?;
        let checkpoint = checkpoints.pop().context("the full run left no checkpoint")?;
        let text = preset.corpus.bytes();
        let prompt = &text[..PROMPT_BYTES.min(text.len())];
        let engine = Engine::new(Arc::new(Model::load(&checkpoint)?), Window::Default)?;
        let sample: Vec<u8> =
            Generation::new(engine, prompt, &SamplingParams::greedy(), SAMPLE_BYTES).collect();
        Ok(Self {
            preset: preset.name.clone(),
            steps: progress.step,
            secs,
            steps_per_sec: progress.steps_per_sec,
            memory_bytes: progress.memory_bytes,
            first_loss: progress.first_loss.unwrap_or(f64::NAN),
            train_loss: progress.train_loss,
            validation_loss: validation_loss.unwrap_or(f64::NAN),
            card,
            sample: String::from_utf8_lossy(&sample).into_owned(),
            checkpoint,
        })
    }
}

impl fmt::Display for Full {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "preset {}, {} steps in {:.0} s: {:.1} steps/s, {} MiB held",
            self.preset,
            self.steps,
            self.secs,
            self.steps_per_sec,
            self.memory_bytes >> 20
        )?;
        writeln!(
            out,
            "  loss {:.2} at the start, {:.2} at the end, {:.2} on held-out text",
            self.first_loss, self.train_loss, self.validation_loss
        )?;
        if let Some(Figures { power_watts, busy_percent, temperature_celsius_max }) = self.card {
            writeln!(
                out,
                "  {power_watts:.0} W and {busy_percent:.0} % busy as means, {temperature_celsius_max:.0} °C at most"
            )?;
        }
        writeln!(out, "  it goes on with: {:?}", self.sample)
    }
}
