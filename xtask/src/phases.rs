//! Work in named phases, each with its time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use console::style;

/// Times what is run.
#[derive(Default)]
pub(crate) struct Phases {
    done: Vec<(&'static str, Duration)>,
}

impl Phases {
    /// Runs one phase under a heading.
    pub(crate) fn run<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("{} {name}", style("==").cyan().bold());
        let started = Instant::now();
        let result = work();
        self.done.push((name, started.elapsed()));
        result.with_context(|| format!("{name} (after {})", seconds(started.elapsed())))
    }

    /// Prints how long each phase took.
    pub(crate) fn print(&self) {
        eprintln!("{}", style("== times").cyan().bold());
        for (name, duration) in &self.done {
            eprintln!("{:>8}  {name}", seconds(*duration));
        }
        eprintln!("{:>8}  total", seconds(self.done.iter().map(|(_, duration)| *duration).sum()));
    }
}

/// A duration as `5.1 s` or `2 m 05 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        whole => format!("{} m {:02} s", whole / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short_and_plain() {
        assert_eq!(seconds(Duration::from_millis(5_120)), "5.1 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 m 05 s");
    }
}
