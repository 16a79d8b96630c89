//! Processor time, of processes and of the whole machine.

use std::fs;

use anyhow::{Context, Result};

/// Seconds of processor time that something took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Taken {
    pub(super) user_secs: f64,
    pub(super) system_secs: f64,
}

impl Taken {
    pub(super) fn secs(self) -> f64 {
        self.user_secs + self.system_secs
    }

    /// What came on top of `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            user_secs: self.user_secs - before.user_secs,
            system_secs: self.system_secs - before.system_secs,
        }
    }
}

impl std::iter::Sum for Taken {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            user_secs: sum.user_secs + one.user_secs,
            system_secs: sum.system_secs + one.system_secs,
        })
    }
}

/// What a process and the children that it has buried took so far; none: there is no such process.
pub(super) fn of_process(pid: u32) -> Option<Taken> {
    let ticks = ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    Some(Taken { user_secs: seconds(ticks[0] + ticks[2]), system_secs: seconds(ticks[1] + ticks[3]) })
}

/// What this process's buried children took so far.
pub(super) fn of_children() -> Result<Taken> {
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc")?;
    let ticks = ticks(&stat).context("/proc/self/stat has another form")?;
    Ok(Taken { user_secs: seconds(ticks[2]), system_secs: seconds(ticks[3]) })
}

/// The machine's time so far: idle, and in all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    idle: u64,
    all: u64,
}

impl Machine {
    pub(super) fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc")?;
        Self::of(&stat).context("/proc/stat has another form")
    }

    fn of(stat: &str) -> Option<Self> {
        let ticks: Vec<u64> = stat
            .lines()
            .find_map(|line| line.strip_prefix("cpu "))?
            .split_whitespace()
            .map_while(|field| field.parse().ok())
            // Guests' time is in the user's already.
            .take(8)
            .collect();
        Some(Self { idle: ticks.get(3)? + ticks.get(4)?, all: ticks.iter().sum() })
    }

    /// The idle part of the time since `before`, 0 to 1.
    pub(super) fn idle_share_since(self, before: Self) -> f64 {
        (self.idle - before.idle) as f64 / (self.all - before.all).max(1) as f64
    }
}

/// utime, stime, cutime, cstime.
fn ticks(stat: &str) -> Option<[u64; 4]> {
    // The name, in brackets, may hold anything, spaces and brackets too.
    let (_, fields) = stat.rsplit_once(") ")?;
    let ticks: Vec<u64> = fields.split(' ').skip(11).take(4).filter_map(|field| field.parse().ok()).collect();
    ticks.try_into().ok()
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_whatever_the_name_is() {
        let stat = "77 (a ) b) S 1 77 77 0 -1 4194560 900 0 3 0 11 22 33 44 20 0 9 0 123 0 0";
        assert_eq!(ticks(stat), Some([11, 22, 33, 44]));
        assert_eq!(ticks("77"), None);
        assert!(of_process(std::process::id()).is_some());
        assert!(of_process(u32::MAX).is_none());
    }

    #[test]
    fn idle_time_is_a_share_of_all() {
        let before = Machine::of("cpu  10 0 10 70 10 0 0 0 5 0\ncpu0 1 2 3\n").unwrap();
        let after = Machine::of("cpu  20 0 20 130 30 0 0 0 9 0\n").unwrap();
        assert!((after.idle_share_since(before) - 0.8).abs() < 1e-9);
    }
}
