//! A training run: steps, reports, validations, checkpoints, until it is done, told to stop, or cannot go on.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use hatchery_common::{
    cursor::{LossCurve, Patience, TrainingCursor},
    device::Device,
    digest::Digest,
    model::{ModelConfig, RawModelConfig},
    recipe::{Precision, TrainSpec},
    time::BootTime,
    trainer::{
        AttemptOrder, Ending, FailureCause, LossPoint, Metrics, Progress, TrainerCommand, TrainerDevice,
        TrainerEvent, Validation,
    },
};
use hatchery_trainer_shim as shim;

use crate::{
    checkpoint::{CheckpointError, Snapshot, TrainingFolder, Writer, Written, read_model, read_training},
    control::{Control, Interrupt},
    data::{Corpus, Sampler},
    device,
    evaluate::{Evaluation, evaluate},
    failure::Failure,
    ffi,
    learner::Learner,
    memory,
    meter::Meter,
    optimizer::Moments,
    report::Reporter,
    weights::Weights,
};

/// What one run is to do.
#[derive(Debug)]
pub struct Task {
    pub model: ModelConfig,
    /// Steps, batch, optimizer and so on.
    pub train: TrainSpec,
    pub corpus: Corpus,
    /// Where to run; none: the most preferred device.
    pub device: Option<Device>,
    /// Threads for a CPU device; 0: as many as there are cores.
    pub threads: u32,
    /// The folder that checkpoint folders are written into.
    pub checkpoints: PathBuf,
    /// The checkpoint folder to go on from.
    pub resume_from: Option<PathBuf>,
    /// With no `resume_from`, the folder whose weights the start has instead of random ones; two files are enough.
    pub fine_tune_from: Option<PathBuf>,
}

impl Task {
    /// What the agent orders.
    pub fn from_order(order: AttemptOrder) -> Result<Self, Failure> {
        Ok(Self {
            corpus: Corpus::open(&order.corpus)?,
            model: order.model,
            train: order.train,
            device: Some(order.device),
            threads: order.threads,
            checkpoints: order.checkpoints,
            resume_from: order.resume_from,
            fine_tune_from: order.fine_tune_from,
        })
    }
}

/// Runs `task` to its end, which is also the last event that `reporter` hears.
pub fn run(task: Result<Task, Failure>, control: &Control, reporter: &mut dyn Reporter) -> Ending {
    let ending = task
        .and_then(|task| train(&task, control, reporter))
        .unwrap_or_else(|failure| Ending::Failed { cause: failure.cause, message: failure.message });
    // With nobody left to hear it, the exit code still tells.
    let _ = reporter.event(&TrainerEvent::Ended(ending.clone()));
    ending
}

fn train(task: &Task, control: &Control, reporter: &mut dyn Reporter) -> Result<Ending, Failure> {
    let sampler = Sampler::new(&task.train, task.corpus.len())?;
    let trainer_device = device::find(task.device)?;
    device::use_threads(task.threads);
    let precision = device::precision(task.train.raw().precision, &trainer_device);
    // Until it is known: who fails before has not begun to keep anything.
    let mut way = memory::Way { precision, has_kernels: true };
    train_on(task, control, reporter, sampler, &trainer_device, &mut way).map_err(|failure| {
        if failure.cause != FailureCause::OutOfMemory {
            return failure;
        }
        let available = device::available_bytes(&trainer_device);
        match memory::advice(&task.model, &task.train, way, available) {
            Some(advice) => Failure { message: format!("{}; {advice}", failure.message), ..failure },
            None => failure,
        }
    })
}

fn train_on(
    task: &Task,
    control: &Control,
    reporter: &mut dyn Reporter,
    sampler: Sampler,
    trainer_device: &TrainerDevice,
    way: &mut memory::Way,
) -> Result<Ending, Failure> {
    let precision = way.precision;
    let torch_device = device::torch_device(trainer_device.device);
    // In a bf16 run what little stays f32 is held to no more.
    shim::allow_tf32(precision == Precision::Bf16);
    let start = Start::find(task, torch_device)?;
    let mut learner =
        Learner::new(task.model.clone(), &task.train, start.weights, start.moments, torch_device, precision)?;
    if let Some(average) = start.average {
        learner.go_on_with_average(average)?;
    }
    way.has_kernels = learner.has_kernels();
    let writer = Writer::start(&task.checkpoints)?;
    let mut told = Told { reporter, control };
    told.event(&TrainerEvent::Started {
        step: start.step,
        device: trainer_device.device,
        precision,
        libtorch: ffi::libtorch_version(),
        slower_because: learner.slower_because().map(str::to_owned),
    });
    let mut run = Run {
        task,
        control,
        told: &mut told,
        sampler,
        learner,
        writer: &writer,
        meter: Meter::default(),
        step: start.step,
        step_saved: start.step,
        metrics: start.metrics,
        curve: start.curve,
        patience: start.patience,
        parent: start.parent,
    };
    let ending = run.learn();
    // Whatever ended the run, what it handed over is worth having.
    let saved = told.checkpoints(writer.finish());
    ending.and_then(|ending| saved.map(|()| ending))
}

/// Where a run begins.
struct Start {
    step: u64,
    weights: Weights,
    /// The weights' running mean, where there is one already.
    average: Option<Weights>,
    moments: Option<Vec<Moments>>,
    metrics: Metrics,
    curve: LossCurve,
    patience: Patience,
    parent: Option<Digest>,
}

impl Start {
    fn find(task: &Task, device: tch::Device) -> Result<Self, Failure> {
        match (&task.resume_from, &task.fine_tune_from) {
            (Some(folder), _) => Self::resume(task, folder, device),
            (None, Some(folder)) => Self::fine_tune(task, folder),
            (None, None) => Ok(Self::with(Weights::start(&task.model, task.train.raw().seed)?, None)),
        }
    }

    /// Step 0 with these weights.
    fn with(weights: Weights, parent: Option<Digest>) -> Self {
        Self {
            step: 0,
            weights,
            average: None,
            moments: None,
            metrics: Metrics::default(),
            curve: LossCurve::default(),
            patience: Patience::default(),
            parent,
        }
    }

    /// Step 0 with the weights that `folder` serves; its optimizer, if it has one, is left where it is.
    fn fine_tune(task: &Task, folder: &Path) -> Result<Self, Failure> {
        let found = read_model(folder)?;
        // The shapes are checked, and dropout is no matter of shape.
        let wanted = RawModelConfig { dropout: found.config.raw().dropout, ..task.model.raw().clone() };
        if *found.config.raw() != wanted {
            return Err(Failure::bad_input(format!(
                "cannot fine-tune the checkpoint {}: its model is {}, but the recipe's is {}",
                folder.display(),
                describe(&found.config),
                describe(&task.model)
            )));
        }
        Ok(Self::with(found.weights, Some(found.digest)))
    }

    fn resume(task: &Task, folder: &Path, device: tch::Device) -> Result<Self, Failure> {
        let refuse = |problem: String| {
            Failure::bad_input(format!("cannot resume from the checkpoint {}: {problem}", folder.display()))
        };
        let TrainingFolder { config, weights, average, moments, cursor } = read_training(folder, device)?;
        if config != task.model {
            return Err(refuse(format!(
                "its model is {}, but the recipe's is {}",
                describe(&config),
                describe(&task.model)
            )));
        }
        if cursor.corpus_bytes != task.corpus.len() {
            return Err(refuse(format!(
                "it was trained on a corpus of {} bytes, but this one has {}",
                cursor.corpus_bytes,
                task.corpus.len()
            )));
        }
        Ok(Self {
            step: cursor.step,
            weights,
            average,
            moments: Some(moments),
            metrics: cursor.metrics,
            curve: cursor.curve,
            patience: cursor.patience,
            parent: cursor.parent,
        })
    }
}

struct Run<'a, 'b> {
    task: &'a Task,
    control: &'a Control,
    told: &'a mut Told<'b>,
    sampler: Sampler,
    learner: Learner,
    writer: &'a Writer,
    meter: Meter,
    step: u64,
    /// Steps done at the last checkpoint.
    step_saved: u64,
    metrics: Metrics,
    curve: LossCurve,
    patience: Patience,
    /// What the run began with, as in the cursor.
    parent: Option<Digest>,
}

impl Run<'_, '_> {
    fn learn(&mut self) -> Result<Ending, Failure> {
        let spec = self.task.train.raw();
        // A run that goes on from its own early end ends again, unless it is given more patience.
        if self.metrics.early_stop.take().is_some() && self.patience.is_over(spec.early_stop) {
            self.stop_early();
        } else if self.step > 0
            && self.step.is_multiple_of(spec.validate_every)
            && self.metrics.validation_step != Some(self.step)
        {
            // The validation of this step was cut short by what interrupted the run.
            self.validate()?;
        }
        while self.step < spec.steps && self.metrics.early_stop.is_none() {
            if let Some(interrupt) = self.control.interrupt(BootTime::now()) {
                return self.break_off(interrupt);
            }
            self.learn_once()?;
            let is_last = self.step == spec.steps;
            if self.step.is_multiple_of(spec.log_every) {
                self.read_losses()?;
            }
            if is_last || self.meter.is_due() {
                self.report_progress()?;
            }
            let is_best = (is_last || self.step.is_multiple_of(spec.validate_every)) && self.validate()?;
            if !is_last && self.patience.is_over(spec.early_stop) {
                self.report_progress()?;
                self.stop_early();
            }
            if is_last
                || self.step.is_multiple_of(spec.checkpoint_every)
                || is_best && spec.checkpoint_best
                || self.metrics.early_stop.is_some()
            {
                self.save()?;
            }
            self.told.checkpoints(self.writer.poll())?;
        }
        Ok(Ending::Completed)
    }

    fn learn_once(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        let starts = self.sampler.starts(self.step);
        let device = self.learner.model().device();
        let batch = self.task.corpus.batch(&starts, self.sampler.block(), device)?;
        let loss = self.learner.step(self.step, &batch)?;
        self.meter.add(loss);
        self.step += 1;
        self.meter.spend(begun.elapsed());
        Ok(())
    }

    /// Takes the losses since the last time into the curve, and looks whether they are numbers; what it waits for on the
    /// device is training time.
    fn read_losses(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        let losses = self.meter.read_losses()?;
        self.meter.spend(begun.elapsed());
        let before = self.step - losses.len() as u64;
        for (step, loss) in (before + 1..).zip(losses) {
            if !loss.is_finite() {
                return Err(not_a_number(&format!("the training loss of step {step} is not a number")));
            }
            self.metrics.first_loss.get_or_insert(loss);
            if let Some(point) = self.curve.add(step, loss, self.task.train.raw().log_every) {
                self.told.event(&TrainerEvent::TrainLoss(point));
            }
        }
        self.metrics.train_loss = self.curve.train_loss();
        Ok(())
    }

    fn report_progress(&mut self) -> Result<(), Failure> {
        self.read_losses()?;
        let progress = Progress {
            step: self.step,
            train_loss: self.metrics.train_loss.unwrap_or_default(),
            first_loss: self.metrics.first_loss,
            steps_per_sec: self.meter.report(),
            memory_bytes: device::memory_bytes(self.learner.model().device()),
            power_watts: None,
            gpu: None,
        };
        self.told.event(&TrainerEvent::Progress(progress));
        Ok(())
    }

    /// Gives whether it is the best so far; one that an interruption ends early is not.
    fn validate(&mut self) -> Result<bool, Failure> {
        self.read_losses()?;
        let starts = self.sampler.validation_starts();
        let control = self.control;
        let is_stopped = || control.interrupt(BootTime::now()).is_some();
        let found =
            evaluate(&mut self.learner, &self.task.corpus, &starts, self.sampler.block(), is_stopped)?;
        let Some(Evaluation { loss, by_position, .. }) = found else { return Ok(false) };
        let step = self.step;
        if !loss.is_finite() {
            return Err(not_a_number(&format!("the validation loss after step {step} is not a number")));
        }
        let point = LossPoint { step, loss };
        self.curve.validated(point);
        self.metrics.validation_loss = Some(loss);
        self.metrics.validation_step = Some(step);
        let is_best = self.metrics.best.is_none_or(|best| loss < best.loss);
        if is_best {
            self.metrics.best = Some(point);
        }
        self.told.event(&TrainerEvent::Validation(Validation { step, loss, by_position }));
        self.patience.hear(loss, self.task.train.raw().early_stop_min_change);
        Ok(is_best)
    }

    fn stop_early(&mut self) {
        let validations = self.patience.validations;
        self.metrics.early_stop = Some(validations);
        if let Some(best) = self.metrics.best {
            self.told.event(&TrainerEvent::EarlyStop { step: self.step, best, validations });
        }
    }

    fn save(&mut self) -> Result<(), Failure> {
        if self.step == self.step_saved {
            return Ok(());
        }
        self.read_losses()?;
        let cursor = TrainingCursor {
            version: 1,
            step: self.step,
            train: self.task.train.clone(),
            corpus_bytes: self.task.corpus.len(),
            metrics: self.metrics,
            curve: self.curve.clone(),
            patience: self.patience,
            parent: self.parent,
        };
        let snapshot = Snapshot::take(&self.learner, cursor)?;
        if !snapshot.is_finite() {
            return Err(not_a_number(&format!("a weight after step {} is not a number", self.step)));
        }
        self.writer.submit(snapshot);
        self.step_saved = self.step;
        Ok(())
    }

    fn break_off(&mut self, interrupt: Interrupt) -> Result<Ending, Failure> {
        self.save()?;
        Ok(match interrupt {
            Interrupt::Stop => Ending::Stopped,
            Interrupt::LeaseExpired => Ending::LeaseExpired,
        })
    }
}

/// The reporter, and what follows if it does not listen.
struct Told<'a> {
    reporter: &'a mut dyn Reporter,
    control: &'a Control,
}

impl Told<'_> {
    /// A listener that is gone is an agent that is gone: stop, as at the end of stdin.
    fn event(&mut self, event: &TrainerEvent) {
        if self.reporter.event(event).is_err() {
            self.control.obey(&TrainerCommand::Stop);
        }
    }

    fn checkpoints(
        &mut self,
        written: impl IntoIterator<Item = Result<Written, CheckpointError>>,
    ) -> Result<(), Failure> {
        for written in written {
            let Written { folder, step, metrics } = written?;
            self.event(&TrainerEvent::Checkpoint { folder, step, metrics });
        }
        Ok(())
    }
}

fn not_a_number(what: &str) -> Failure {
    Failure::new(FailureCause::NotANumber, format!("{what}; try a smaller train.lr"))
}

fn describe(model: &ModelConfig) -> String {
    serde_json::to_string(model).unwrap_or_else(|error| error.to_string())
}
