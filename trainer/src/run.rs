//! A training run: steps, reports, validations, checkpoints, until it is done, told to stop, or cannot go on.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use hatchery_common::{
    checkpoint::TrainingCursor,
    device::Device,
    model::ModelConfig,
    recipe::TrainSpec,
    time::BootTime,
    trainer::{
        AttemptOrder, Ending, FailureCause, Metrics, Progress, TrainerCommand, TrainerEvent, Validation,
    },
};

use crate::{
    checkpoint::{CheckpointError, Snapshot, Writer, Written, read_model, read_training},
    control::{Control, Interrupt},
    data::{Corpus, Sampler},
    device,
    evaluate::evaluate,
    failure::Failure,
    ffi,
    learner::Learner,
    meter::Meter,
    optimizer::Moments,
    report::Reporter,
    weights::Weights,
};

/// What one run is to do.
#[derive(Debug)]
pub struct Task {
    /// The model's shape.
    pub model: ModelConfig,
    /// Steps, batch, optimizer and so on.
    pub train: TrainSpec,
    /// The text.
    pub corpus: Corpus,
    /// Where to run; none: the most preferred device.
    pub device: Option<Device>,
    /// Threads for a CPU device; 0: as many as there are cores.
    pub threads: u32,
    /// The folder that checkpoint folders are written into.
    pub checkpoints: PathBuf,
    /// The checkpoint folder to go on from.
    pub resume_from: Option<PathBuf>,
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
    let torch_device = device::torch_device(trainer_device.device);

    let start = Start::find(task, torch_device)?;
    let learner =
        Learner::new(task.model.clone(), &task.train, start.weights, start.moments, torch_device, precision)?;
    let writer = Writer::start(&task.checkpoints)?;
    let mut told = Told { reporter, control };
    told.event(&TrainerEvent::Started {
        step: start.step,
        device: trainer_device.device,
        precision,
        libtorch: ffi::libtorch_version(),
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
    moments: Option<Vec<Moments>>,
    metrics: Metrics,
}

impl Start {
    fn find(task: &Task, device: tch::Device) -> Result<Self, Failure> {
        match &task.resume_from {
            Some(folder) => Self::resume(task, folder, device),
            None => Ok(Self {
                step: 0,
                weights: Weights::start(&task.model, task.train.raw().seed)?,
                moments: None,
                metrics: Metrics::default(),
            }),
        }
    }

    fn resume(task: &Task, folder: &Path, device: tch::Device) -> Result<Self, Failure> {
        let refuse = |problem: String| {
            Failure::bad_input(format!("cannot go on from the checkpoint {}: {problem}", folder.display()))
        };
        let found = read_model(folder)?;
        if found.config != task.model {
            return Err(refuse(format!(
                "its model is {} and the recipe's is {}",
                describe(&found.config),
                describe(&task.model)
            )));
        }
        let (moments, cursor) = read_training(folder, &found.config, device)?;
        if cursor.corpus_bytes != task.corpus.len() {
            return Err(refuse(format!(
                "it was trained on a corpus of {} bytes, and this one has {}",
                cursor.corpus_bytes,
                task.corpus.len()
            )));
        }
        Ok(Self {
            step: cursor.step,
            weights: found.weights,
            moments: Some(moments),
            metrics: cursor.metrics,
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
    /// Steps done.
    step: u64,
    /// Steps done at the last checkpoint.
    step_saved: u64,
    metrics: Metrics,
}

impl Run<'_, '_> {
    fn learn(&mut self) -> Result<Ending, Failure> {
        let spec = self.task.train.raw();
        while self.step < spec.steps {
            if let Some(interrupt) = self.control.interrupt(BootTime::now()) {
                return self.break_off(interrupt);
            }
            self.learn_once()?;
            let is_last = self.step == spec.steps;
            if is_last || self.meter.is_due() {
                self.report_progress()?;
            }
            if is_last || self.step.is_multiple_of(spec.validate_every) {
                self.validate()?;
            }
            if is_last || self.step.is_multiple_of(spec.checkpoint_every) {
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
        self.meter.add(loss)?;
        self.step += 1;
        self.meter.spend(begun.elapsed());
        Ok(())
    }

    /// The mean loss since the last progress; what it waits for on the device is training time.
    fn read_loss(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        if let Some(loss) = self.meter.mean_loss()? {
            self.metrics.first_loss.get_or_insert(loss);
            self.metrics.train_loss = Some(loss);
        }
        self.meter.spend(begun.elapsed());
        Ok(())
    }

    fn report_progress(&mut self) -> Result<(), Failure> {
        self.read_loss()?;
        let progress = Progress {
            step: self.step,
            train_loss: self.metrics.train_loss.unwrap_or_default(),
            first_loss: self.metrics.first_loss,
            steps_per_sec: self.meter.report(),
            memory_bytes: ffi::resident_bytes(),
            power_watts: None,
        };
        self.told.event(&TrainerEvent::Progress(progress));
        Ok(())
    }

    fn validate(&mut self) -> Result<(), Failure> {
        self.read_loss()?;
        let starts = self.sampler.validation_starts();
        let control = self.control;
        let is_stopped = || control.interrupt(BootTime::now()).is_some();
        let found =
            evaluate(&mut self.learner, &self.task.corpus, &starts, self.sampler.block(), is_stopped)?;
        if let Some(found) = found {
            if !found.loss.is_finite() {
                return Err(not_a_number("the validation loss is not a number"));
            }
            self.metrics.validation_loss = Some(found.loss);
            self.told.event(&TrainerEvent::Validation(Validation { step: self.step, loss: found.loss }));
        }
        Ok(())
    }

    fn save(&mut self) -> Result<(), Failure> {
        if self.step == self.step_saved {
            return Ok(());
        }
        self.read_loss()?;
        let cursor = TrainingCursor {
            version: 1,
            step: self.step,
            train: self.task.train.clone(),
            corpus_bytes: self.task.corpus.len(),
            metrics: self.metrics,
        };
        let snapshot = Snapshot::take(&self.learner, cursor)?;
        if !snapshot.is_finite() {
            return Err(not_a_number("a weight is not a number any more"));
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
    Failure::new(FailureCause::NotANumber, format!("{what}; a smaller train.lr may keep it finite"))
}

fn describe(model: &ModelConfig) -> String {
    serde_json::to_string(model).unwrap_or_else(|error| error.to_string())
}
