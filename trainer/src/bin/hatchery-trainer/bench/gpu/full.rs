//! The reference run from start to sample: the row to set beside the others'.

use std::{fmt, sync::Arc, time::Instant};

use anyhow::{Context, bail};
use hatchery_bdh::{Engine, Generation, Model, Window};
use hatchery_common::{
    device::{Device, DeviceKind},
    generate::SamplingParams,
    recipe::Recipe,
    trainer::{Ending, Progress, TrainerEvent},
};
use hatchery_trainer::{
    control::Control,
    data::Corpus,
    report::Reporter,
    run::{Task, run},
};
use serde::Serialize;

use super::card::{Figures, Watch};

const SAMPLE_BYTES: usize = 200;

/// What became of it.
#[derive(Debug, Serialize)]
pub(super) struct Full {
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
}

/// Hears the run, and remembers its last figures.
#[derive(Debug, Default)]
struct Ear {
    progress: Progress,
    validation_loss: Option<f64>,
    checkpoint: Option<std::path::PathBuf>,
}

impl Reporter for Ear {
    fn event(&mut self, event: &TrainerEvent) -> std::io::Result<()> {
        match event {
            TrainerEvent::Progress(progress) => self.progress = *progress,
            TrainerEvent::Validation(validation) => {
                eprintln!("full run: step {}, validation {:.4}", validation.step, validation.loss);
                self.validation_loss = Some(validation.loss);
            }
            TrainerEvent::Checkpoint { folder, .. } => self.checkpoint = Some(folder.clone()),
            _ => {}
        }
        Ok(())
    }
}

/// Trains the preset seed for `steps` steps on `corpus` and lets it go on from its start.
pub(super) fn train_seed(corpus: Corpus, device: Device, steps: u32) -> anyhow::Result<Full> {
    let settings = [format!("train.steps={steps}")];
    let Recipe { model, train, .. } = Recipe::parse(Some("seed"), "", &settings)?;
    let prompt = corpus.bytes()[..32.min(corpus.bytes().len())].to_vec();
    let folder = tempfile::tempdir().context("cannot make a folder for the full run")?;
    let task = Task {
        model,
        train,
        corpus,
        device: Some(device),
        threads: 0,
        checkpoints: folder.path().to_owned(),
        resume_from: None,
        fine_tune_from: None,
    };
    let watch = (device.kind == DeviceKind::Cuda).then(|| Watch::start(device.index));
    let (begun, mut ear) = (Instant::now(), Ear::default());
    let ending = run(Ok(task), &Control::new(None), &mut ear);
    let secs = begun.elapsed().as_secs_f64();
    let card = watch.and_then(Watch::stop);
    if ending != Ending::Completed {
        bail!("the full run ended otherwise than by its end: {ending:?}");
    }
    let checkpoint = ear.checkpoint.context("the full run left no checkpoint")?;
    let engine = Engine::new(Arc::new(Model::load(&checkpoint)?), Window::Default)?;
    let sample: Vec<u8> = Generation::new(engine, &prompt, &SamplingParams::greedy(), SAMPLE_BYTES).collect();
    let progress = ear.progress;
    Ok(Full {
        steps: progress.step,
        secs,
        steps_per_sec: progress.steps_per_sec,
        memory_bytes: progress.memory_bytes,
        first_loss: progress.first_loss.unwrap_or(f64::NAN),
        train_loss: progress.train_loss,
        validation_loss: ear.validation_loss.unwrap_or(f64::NAN),
        card,
        sample: String::from_utf8_lossy(&sample).into_owned(),
    })
}

impl fmt::Display for Full {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "preset seed, {} steps in {:.0} s: {:.1} steps/s, {} MiB held",
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
