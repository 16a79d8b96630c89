//! Two clocks: wall time for people and records, boot time for deadlines.

use std::{
    fmt,
    ops::{Add, Sub},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Wall time in milliseconds since 1970-01-01 UTC. For records and people; never for deadlines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Now.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since.as_millis() as u64)
    }

    /// Time passed since `earlier`; zero if the clock went back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_millis() as u64))
    }
}

impl fmt::Display for Timestamp {
    /// `2026-11-24 14:03:09 UTC`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match i64::try_from(self.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()) {
            Some(time) => write!(f, "{}", time.strftime("%Y-%m-%d %H:%M:%S UTC")),
            None => write!(f, "{} ms after 1970", self.0),
        }
    }
}

/// Time since the machine booted, in milliseconds, that goes on counting while it is suspended. Processes of one
/// machine share it, so a deadline can be handed from the agent to its trainer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Now.
    pub fn now() -> Self {
        // Linux stops CLOCK_MONOTONIC in suspend; Apple's CLOCK_MONOTONIC counts through it.
        #[cfg(target_os = "linux")]
        let clock = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = rustix::time::ClockId::Monotonic;
        let time = rustix::time::clock_gettime(clock);
        Self(time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000)
    }

    /// Time passed since `earlier`; zero if that lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_millis() as u64))
    }
}

impl Sub<Duration> for BootTime {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration.as_millis() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_read_as_dates() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01 00:00:00 UTC");
        assert_eq!(Timestamp(1_709_210_096_000).to_string(), "2024-02-29 12:34:56 UTC");
        assert_eq!(Timestamp(1_798_761_599_999).to_string(), "2026-12-31 23:59:59 UTC");
        assert_eq!(Timestamp(u64::MAX).to_string(), "18446744073709551615 ms after 1970");
    }

    #[test]
    fn boot_time_does_not_go_back() {
        let before = BootTime::now();
        assert!(BootTime::now() >= before);
        assert_eq!((before + Duration::from_secs(2)).since(before), Duration::from_secs(2));
    }
}
