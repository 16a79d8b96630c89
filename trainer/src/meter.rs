//! What a run knows of itself: losses that stay on the device until somebody asks, and the speed of the steps alone.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tch::{Device, Kind, TchError, Tensor};

/// The least time between two progress reports.
const REPORT_EVERY: Duration = Duration::from_millis(250);
/// How far back the speed looks, in training time.
const SPEED_WINDOW: Duration = Duration::from_secs(5);

/// Losses that nobody has read yet, and the speed.
#[derive(Debug)]
pub(crate) struct Meter {
    /// Scalars on the device, oldest first.
    losses: Vec<Tensor>,
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
            losses: Vec::new(),
            clock: Duration::ZERO,
            marks: VecDeque::from([(Duration::ZERO, 0)]),
            steps: 0,
            reported: None,
        }
    }
}

impl Meter {
    /// Counts one step and its loss, a scalar on the device; waits for nothing.
    pub(crate) fn add(&mut self, loss: Tensor) {
        self.losses.push(loss);
        self.steps += 1;
    }

    /// Counts time spent in steps.
    pub(crate) fn spend(&mut self, time: Duration) {
        self.clock += time;
    }

    /// The losses of the last steps that were not read yet, oldest first; waits for the device.
    pub(crate) fn read_losses(&mut self) -> Result<Vec<f64>, TchError> {
        if self.losses.is_empty() {
            return Ok(Vec::new());
        }
        let losses = Tensor::f_stack(&std::mem::take(&mut self.losses), 0)?;
        // To f64 on the CPU, because an Apple GPU has none.
        Vec::try_from(losses.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)
    }

    /// Whether a report is due.
    pub(crate) fn is_due(&self) -> bool {
        self.reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY)
    }

    /// Starts the next report; gives the steps per second over the last seconds of training.
    pub(crate) fn report(&mut self) -> f64 {
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
