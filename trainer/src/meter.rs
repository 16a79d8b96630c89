//! What a run knows of itself: losses that stay on the device until somebody asks, and the speed of the steps alone.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use hatchery_common::trainer::FailureCause;
use tch::{TchError, Tensor};

use crate::failure::Failure;

/// The least time between two progress reports.
const REPORT_EVERY: Duration = Duration::from_millis(250);
/// How far back the speed looks, in training time.
const SPEED_WINDOW: Duration = Duration::from_secs(5);

/// Losses since the last report, and the speed.
#[derive(Debug)]
pub(crate) struct Meter {
    loss_sum: Option<Tensor>,
    losses: u64,
    /// Time spent in steps, and nothing else.
    clock: Duration,
    /// The clock and the steps at each report within the window.
    marks: VecDeque<(Duration, u64)>,
    steps: u64,
    reported: Option<Instant>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            loss_sum: None,
            losses: 0,
            clock: Duration::ZERO,
            marks: VecDeque::from([(Duration::ZERO, 0)]),
            steps: 0,
            reported: None,
        }
    }
}

impl Meter {
    /// Counts one step and its loss, a scalar on the device; waits for nothing.
    pub(crate) fn add(&mut self, loss: Tensor) -> Result<(), TchError> {
        self.loss_sum = Some(match self.loss_sum.take() {
            Some(sum) => sum.f_add(&loss)?,
            None => loss,
        });
        self.losses += 1;
        self.steps += 1;
        Ok(())
    }

    /// Counts time spent in steps.
    pub(crate) fn spend(&mut self, time: Duration) {
        self.clock += time;
    }

    /// The mean loss since the last report; waits for the device. None: no step since then. A mean that is not a number
    /// fails: one such loss is enough to make every later one so.
    pub(crate) fn mean_loss(&self) -> Result<Option<f64>, Failure> {
        let Some(sum) = &self.loss_sum else { return Ok(None) };
        let mean = f64::try_from(sum)? / self.losses as f64;
        if mean.is_finite() {
            Ok(Some(mean))
        } else {
            Err(Failure::new(
                FailureCause::NotANumber,
                "the training loss is not a number any more; a smaller train.lr may keep it finite",
            ))
        }
    }

    /// Whether a report is due.
    pub(crate) fn is_due(&self) -> bool {
        self.reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY)
    }

    /// Starts the next report; gives the steps per second over the last seconds of training.
    pub(crate) fn report(&mut self) -> f64 {
        self.loss_sum = None;
        self.losses = 0;
        self.reported = Some(Instant::now());
        self.marks.push_back((self.clock, self.steps));
        while self.marks.len() > 2 && self.clock.saturating_sub(self.marks[1].0) >= SPEED_WINDOW {
            self.marks.pop_front();
        }
        let (clock, steps) = self.marks[0];
        let seconds = self.clock.saturating_sub(clock).as_secs_f64();
        if seconds > 0.0 { (self.steps - steps) as f64 / seconds } else { 0.0 }
    }
}
