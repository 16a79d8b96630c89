//! What a run does beside its steps, each thing measured alone: a share of a thousandth would drown in the noise of whole
//! runs.

use std::{io, time::Instant};

use hatchery_common::{
    cursor::{LossCurve, Patience, TrainingCursor},
    recipe::{Precision, Recipe},
    trainer::{Metrics, Progress, TrainerEvent},
};
use hatchery_trainer::{
    checkpoint::{Snapshot, write},
    data::{Corpus, Sampler, noise},
    evaluate::evaluate,
    ffi,
    learner::Learner,
    weights::Weights,
};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

/// Steps that are timed after the first, and repeats of all else; the median counts.
const REPEATS: u64 = 5;
/// What takes longer than this is not repeated.
const LONG_SECS: f64 = 20.0;
/// Progress is reported at most so often.
const REPORTS_PER_SEC: f64 = 4.0;

/// What a run does beside its steps, and how often.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Overhead {
    step_secs: f64,
    validation_windows: usize,
    validation_secs: f64,
    validate_every: u64,
    /// The copy for which training waits.
    snapshot_secs: f64,
    /// Processor time of the thread that writes it while training goes on.
    write_cpu_secs: f64,
    checkpoint_every: u64,
    report_secs: f64,
    threads: u32,
}

impl Overhead {
    /// The share of a run's time for each of the three, if all cores are busy with the steps.
    fn shares(&self) -> [f64; 3] {
        let every = |secs: f64, steps: u64| secs / (steps as f64 * self.step_secs);
        [
            every(self.validation_secs, self.validate_every),
            every(self.snapshot_secs + self.write_cpu_secs / f64::from(self.threads), self.checkpoint_every),
            self.report_secs * REPORTS_PER_SEC,
        ]
    }

    pub(super) fn table(&self) -> String {
        let [validation, checkpoint, report] = self.shares().map(|share| format!("{:.3} %", 100.0 * share));
        let sum: f64 = self.shares().iter().sum();
        let lines = [
            format!(
                "beside the steps ({:.3} s each)                               share of the time",
                self.step_secs
            ),
            format!(
                "validation on {} windows each {} steps: {:.3} s {validation:>31}",
                self.validation_windows, self.validate_every, self.validation_secs
            ),
            format!(
                "checkpoint each {} steps: {:.4} s waiting, {:.3} s of one core {checkpoint:>10}",
                self.checkpoint_every, self.snapshot_secs, self.write_cpu_secs
            ),
            format!("report {REPORTS_PER_SEC} times a second: {:.6} s {report:>35}", self.report_secs),
            format!("together {:>64}", format!("{:.3} %", 100.0 * sum)),
        ];
        lines.join("\n")
    }
}

/// Measures with the shape and at the intervals of `recipe`.
pub(super) fn measure(recipe: &Recipe) -> anyhow::Result<Overhead> {
    let raw = recipe.train.raw();
    let weights = Weights::start(&recipe.model, 1)?;
    let mut learner =
        Learner::new(recipe.model.clone(), &recipe.train, weights, None, Device::Cpu, Precision::F32)?;
    let folder = tempfile::tempdir()?;
    let corpus = corpus(folder.path(), raw.block, raw.validation_windows, raw.validation_share)?;
    let sampler = Sampler::new(&recipe.train, corpus.len())?;

    let mut steps = 0;
    let mut step = || {
        let batch = noise(steps, raw.batch, raw.block, Device::Cpu)?;
        steps += 1;
        learner.step(steps, &batch)
    };
    let loss = step()?;
    let step_secs = median(|| step().map(|_| ()))?;

    let starts = sampler.validation_starts();
    let mut evaluation = || evaluate(&mut learner, &corpus, &starts, sampler.block(), || false).map(|_| ());
    let begun = Instant::now();
    evaluation()?; // makes room
    // What takes so long is well measured by once.
    let first_secs = begun.elapsed().as_secs_f64();
    let validation_secs = if first_secs > LONG_SECS { first_secs } else { median(evaluation)? };

    let cursor = || TrainingCursor {
        version: 1,
        step: 1,
        train: recipe.train.clone(),
        corpus_bytes: corpus.len(),
        metrics: Metrics::default(),
        curve: LossCurve::default(),
        patience: Patience::default(),
        parent: None,
    };
    let snapshot_secs =
        median(|| Snapshot::take(&learner, cursor()).map(|snapshot| assert!(snapshot.is_finite())))?;
    let snapshot = Snapshot::take(&learner, cursor())?;
    let before = ffi::thread_cpu_secs();
    write(folder.path(), &snapshot)?;
    let write_cpu_secs = ffi::thread_cpu_secs() - before;

    let report_secs = median(|| report(&loss))?;
    Ok(Overhead {
        step_secs,
        validation_windows: starts.len(),
        validation_secs,
        validate_every: raw.validate_every,
        snapshot_secs,
        write_cpu_secs,
        checkpoint_every: raw.checkpoint_every,
        report_secs,
        threads: u32::try_from(tch::get_num_threads())?,
    })
}

/// Reads a loss and writes a line about it, as a run does for its agent.
fn report(loss: &Tensor) -> anyhow::Result<()> {
    let progress = Progress {
        step: 1,
        train_loss: f64::try_from(loss)?,
        first_loss: None,
        steps_per_sec: 1.0,
        memory_bytes: ffi::resident_bytes(),
        power_watts: None,
        gpu: None,
    };
    Ok(serde_json::to_writer(io::sink(), &TrainerEvent::Progress(progress))?)
}

/// Text of one letter, long enough for all windows of a validation.
fn corpus(folder: &std::path::Path, block: u32, windows: u32, share: f64) -> anyhow::Result<Corpus> {
    let held_out = f64::from(windows + 1) * f64::from(block);
    let bytes = vec![b'a'; (held_out / share) as usize + 2 * block as usize];
    let path = folder.join("corpus.txt");
    std::fs::write(&path, bytes)?;
    Ok(Corpus::open(&path)?)
}

/// The median time of a thing.
fn median<E: Into<anyhow::Error>>(mut thing: impl FnMut() -> Result<(), E>) -> anyhow::Result<f64> {
    let mut secs = Vec::new();
    for _ in 0..REPEATS {
        let begun = Instant::now();
        thing().map_err(Into::into)?;
        secs.push(begun.elapsed().as_secs_f64());
    }
    secs.sort_by(f64::total_cmp);
    Ok(secs[secs.len() / 2])
}
