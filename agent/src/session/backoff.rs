//! How long to wait before the next try: exponential, bounded, with full jitter, so that many who failed together do
//! not come back together.

use std::time::Duration;

/// First and longest wait before the coordinator is dialled again.
const DIAL_FIRST: Duration = Duration::from_millis(200);
/// After a long absence a fleet is back within this time, and little more for handshakes that wait for one another.
const DIAL_LONGEST: Duration = Duration::from_secs(5);
/// Dials in a lease at the least.
const DIALS_PER_LEASE_MIN: u32 = 5;

/// The next wait after so many failures in a row.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits of up to `first`, doubling up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The waits between dials of the coordinator. There are several of them in a `lease`: whether the coordinator is down
    /// is to be known before it ends.
    pub fn of_dials(lease: Duration) -> Self {
        Self::new(DIAL_FIRST, (lease / DIALS_PER_LEASE_MIN).clamp(DIAL_FIRST, DIAL_LONGEST))
    }

    /// Draws the next wait.
    pub fn next_wait(&mut self) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(rand::random::<f64>())
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    fn ceiling(&self) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(self.failures)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_are_drawn_from_zero_up() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        for ceiling_ms in [100, 200, 400, 800, 1600, 2000, 2000] {
            assert_eq!(backoff.ceiling(), Duration::from_millis(ceiling_ms));
            assert!(backoff.next_wait() <= Duration::from_millis(ceiling_ms));
        }
        backoff.failures = u32::MAX;
        assert!(backoff.next_wait() <= Duration::from_secs(2));
        backoff.reset();
        assert_eq!(backoff.ceiling(), Duration::from_millis(100));
    }
}
