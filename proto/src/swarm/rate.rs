//! A limit on bytes per second.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// How much may go at once after a pause, as the time that it takes.
const BURST: Duration = Duration::from_millis(50);

/// A limit on bytes per second that all clones share; it can be changed while it is in use.
#[derive(Clone, Debug)]
pub struct RateLimit(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// None: no limit.
    bytes_per_sec: Option<u64>,
    /// When all that was let through so far will have gone.
    gone_at: Option<Instant>,
}

impl RateLimit {
    /// So many bytes per second; none: no limit.
    pub fn new(bytes_per_sec: Option<u64>) -> Self {
        Self(Arc::new(Mutex::new(State { bytes_per_sec, gone_at: None })))
    }

    /// From now on it is this.
    pub fn set(&self, bytes_per_sec: Option<u64>) {
        let mut state = self.state();
        if state.bytes_per_sec != bytes_per_sec {
            *state = State { bytes_per_sec, gone_at: None };
        }
    }

    /// Waits until so many bytes more may go. Whoever asks first goes first.
    pub async fn take(&self, bytes: u64) {
        let start = {
            let mut state = self.state();
            let Some(bytes_per_sec) = state.bytes_per_sec.filter(|rate| *rate > 0) else { return };
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let start = state.gone_at.map_or(earliest, |gone_at| gone_at.max(earliest));
            let takes = Duration::from_secs_f64(bytes as f64 / bytes_per_sec as f64);
            state.gone_at = Some(start + takes);
            start
        };
        sleep_until(start).await;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_kept_by_all_together_and_can_be_lifted() {
        let limit = RateLimit::new(Some(1000));
        let start = Instant::now();
        let takers = (0..10).map(|_| {
            let limit = limit.clone();
            tokio::spawn(async move { limit.take(500).await })
        });
        for taker in takers.collect::<Vec<_>>() {
            taker.await.unwrap();
        }
        limit.take(0).await;
        let took = start.elapsed().as_secs_f64();
        assert!((4.9..=5.0).contains(&took), "5000 bytes at 1000 a second took {took} s");

        limit.set(None);
        limit.take(1 << 40).await;
        assert!(start.elapsed().as_secs_f64() < took + 0.001);
    }
}
