//! Bytes on their way: a bar in a terminal, a line now and then in a pipe.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// In a pipe, a line is printed at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Whether cargo has a bar of its own in the terminal.
static IS_SHARED: AtomicBool = AtomicBool::new(false);

/// From now on there are lines instead of bars: cargo builds beside.
pub(crate) fn share_terminal() {
    IS_SHARED.store(true, Ordering::Relaxed);
}

/// Shows how much of a known number of bytes has arrived, and how fast.
pub(crate) struct Meter {
    bar: Option<ProgressBar>,
    label: String,
    total_bytes: u64,
    done_bytes: u64,
    fresh_bytes: u64,
    started: Instant,
    last_line: Instant,
}

impl Meter {
    /// A meter for `total_bytes`, shown on standard error.
    pub(crate) fn new(label: impl Into<String>, total_bytes: u64) -> Self {
        let has_bar = Term::stderr().is_term() && !IS_SHARED.load(Ordering::Relaxed);
        let bar = has_bar.then(|| {
            let style = ProgressStyle::with_template(
                "{msg:28!} [{bar:30}] {bytes:>10} of {total_bytes:>10}  {bytes_per_sec:>12}  {eta:>4}",
            )
            .expect("the template above is well formed")
            .progress_chars("=> ");
            ProgressBar::new(total_bytes).with_style(style)
        });
        let now = Instant::now();
        let meter = Self {
            bar,
            label: label.into(),
            total_bytes,
            done_bytes: 0,
            fresh_bytes: 0,
            started: now,
            last_line: now,
        };
        meter.show_label();
        meter
    }

    /// Names what is on its way now.
    pub(crate) fn label(&mut self, label: impl Into<String>) {
        self.label = label.into();
        self.show_label();
    }

    fn show_label(&self) {
        if let Some(bar) = &self.bar {
            bar.set_message(self.label.clone());
        }
    }

    /// Counts bytes that have just arrived.
    pub(crate) fn arrived(&mut self, bytes: u64) {
        self.fresh_bytes += bytes;
        self.advance(bytes);
        if self.bar.is_none() && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            eprintln!(
                "  {:>3} %  {} of {}  {}/s  {}",
                self.done_bytes * 100 / self.total_bytes.max(1),
                HumanBytes(self.done_bytes),
                HumanBytes(self.total_bytes),
                HumanBytes(self.bytes_per_sec()),
                self.label,
            );
        }
    }

    /// Counts bytes that were there before: they move the bar, not the rate.
    pub(crate) fn already_there(&mut self, bytes: u64) {
        self.advance(bytes);
        if let Some(bar) = &self.bar {
            bar.reset_eta();
        }
    }

    /// Takes bytes back that turned out to be worthless.
    pub(crate) fn lost(&mut self, bytes: u64) {
        self.done_bytes = self.done_bytes.saturating_sub(bytes);
        if let Some(bar) = &self.bar {
            bar.set_position(self.done_bytes);
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.done_bytes += bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done_bytes);
        }
    }

    fn bytes_per_sec(&self) -> u64 {
        (self.fresh_bytes as f64 / self.started.elapsed().as_secs_f64().max(1e-3)) as u64
    }

    /// Prints a line that stays, above the bar if there is one.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Removes the bar and says what it came to: bytes that arrived, seconds, rate.
    pub(crate) fn finish(self) -> String {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        format!(
            "{} in {:.1} s ({}/s)",
            HumanBytes(self.fresh_bytes),
            self.started.elapsed().as_secs_f64(),
            HumanBytes(self.bytes_per_sec())
        )
    }
}
