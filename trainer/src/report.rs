//! Telling how a run goes: JSON lines for a program, plain lines for a person.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use hatchery_common::trainer::{Ending, Metrics, Progress, TrainerEvent, bits};

/// Hears every event of a run.
pub trait Reporter {
    /// Takes one event. An error means that nobody listens any more.
    fn event(&mut self, event: &TrainerEvent) -> std::io::Result<()>;
}

/// One [`TrainerEvent`] as JSON on each line.
#[derive(Debug)]
pub struct JsonLines<W>(pub W);

impl<W: Write> Reporter for JsonLines<W> {
    fn event(&mut self, event: &TrainerEvent) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.0.write_all(&line)?;
        self.0.flush()
    }
}

/// JSON lines for the agent, and the same in words for the people who read the attempt's log.
#[derive(Debug)]
pub struct WithLog<W, L> {
    /// Whoever follows the run; that it has gone is an error.
    pub events: JsonLines<W>,
    /// The log; that it cannot be written stops nothing.
    pub log: Text<L>,
}

impl<W: Write, L: Write> Reporter for WithLog<W, L> {
    fn event(&mut self, event: &TrainerEvent) -> std::io::Result<()> {
        let _ = self.log.event(event);
        self.events.event(event)
    }
}

/// Lines for a person.
#[derive(Debug)]
pub struct Text<W> {
    out: W,
    steps: u64,
    show_every: Duration,
    shown: Option<Instant>,
}

impl<W: Write> Text<W> {
    /// For a run of `steps` steps; at least `show_every` passes between two lines of progress.
    pub fn new(out: W, steps: u64, show_every: Duration) -> Self {
        Self { out, steps, show_every, shown: None }
    }

    fn progress(&mut self, progress: &Progress) -> std::io::Result<()> {
        let is_last = progress.step == self.steps;
        if !is_last && self.shown.is_some_and(|shown| shown.elapsed() < self.show_every) {
            return Ok(());
        }
        self.shown = Some(Instant::now());
        let left_secs = (self.steps.saturating_sub(progress.step)) as f64 / progress.steps_per_sec;
        let left = if left_secs.is_finite() { format!("{left_secs:.0} s left") } else { "?".into() };
        writeln!(
            self.out,
            "step {:>width$}/{}  loss {:.4} ({:.3} bits per byte)  {:.2} steps/s  {left}  {} MiB",
            progress.step,
            self.steps,
            progress.train_loss,
            bits(progress.train_loss),
            progress.steps_per_sec,
            progress.memory_bytes >> 20,
            width = self.steps.to_string().len(),
        )
    }
}

impl<W: Write> Reporter for Text<W> {
    fn event(&mut self, event: &TrainerEvent) -> std::io::Result<()> {
        match event {
            TrainerEvent::Started { step, device, precision, libtorch, slower_because } => {
                let precision = format!("{precision:?}").to_lowercase();
                writeln!(
                    self.out,
                    "training on {device} in {precision} with libtorch {libtorch}, from step {step}"
                )?;
                slower_because
                    .as_ref()
                    .map_or(Ok(()), |why| writeln!(self.out, "slower than it could be: {why}"))
            }
            TrainerEvent::Progress(progress) => self.progress(progress),
            // Progress says the same more often.
            TrainerEvent::TrainLoss(_) => Ok(()),
            TrainerEvent::Validation(validation) => writeln!(
                self.out,
                "validation at step {}: loss {:.4} nats, {:.4} bits per byte",
                validation.step,
                validation.loss,
                bits(validation.loss)
            ),
            TrainerEvent::EarlyStop { step, best, validations } => {
                let metrics =
                    Metrics { best: Some(*best), early_stop: Some(*validations), ..Metrics::default() };
                let why = metrics.early_stop_reason().unwrap_or_default();
                writeln!(self.out, "stopping early, after step {step}: {why}")
            }
            TrainerEvent::Checkpoint { folder, step, metrics } => {
                let is_best = metrics.best.is_some_and(|best| best.step == *step);
                let best = if is_best { ", the best so far" } else { "" };
                writeln!(self.out, "checkpoint {}{best}", folder.display())
            }
            TrainerEvent::Ended(Ending::Completed) => writeln!(self.out, "completed"),
            TrainerEvent::Ended(Ending::Stopped) => {
                writeln!(self.out, "stopped; resume it from its last checkpoint")
            }
            TrainerEvent::Ended(Ending::LeaseExpired) => writeln!(self.out, "stopped: the lease expired"),
            TrainerEvent::Ended(Ending::NodeAway) => {
                writeln!(self.out, "stopped: the machine's owner needs the machine")
            }
            TrainerEvent::Ended(Ending::Failed { message, .. }) => writeln!(self.out, "failed: {message}"),
        }
    }
}
