//! A limit on bytes per second.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// How much may go at once after a pause, as the time that it takes.
const BURST: Duration = Duration::from_millis(50);

/// A limit on bytes per second that all clones share; it can be changed while it is in use.
#[derive(Clone, Debug)]
pub struct RateLimit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Told when there is another limit.
    changed: Notify,
}

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
        let state = Mutex::new(State { bytes_per_sec, gone_at: None });
        Self(Arc::new(Inner { state, changed: Notify::new() }))
    }

    /// From now on it is this.
    pub fn set(&self, bytes_per_sec: Option<u64>) {
        let mut state = self.state();
        if state.bytes_per_sec != bytes_per_sec {
            *state = State { bytes_per_sec, gone_at: None };
            self.0.changed.notify_waiters();
        }
    }

    /// Bytes per second; none: no limit.
    pub fn bytes_per_sec(&self) -> Option<u64> {
        self.state().bytes_per_sec
    }

    /// Waits until so many bytes more may go. Whoever asks first goes first; dropped before its turn, it gives back what it
    /// would have taken.
    pub async fn take(&self, bytes: u64) {
        let changed = self.0.changed.notified();
        let mut changed = std::pin::pin!(changed);
        changed.as_mut().enable();
        let Some((start, takes)) = self.state().reserve(bytes) else { return };
        let mut turn = Turn { limit: self, takes: Some(takes) };
        tokio::select! {
            () = sleep_until(start) => {}
            // There is another limit: what was reserved under the old one is forgotten.
            () = changed => {}
        }
        turn.takes = None;
    }

    /// So many bytes have come, whether they might or not: what comes next has to wait for them.
    pub fn charge(&self, bytes: u64) {
        // It is known already that they have gone.
        let _gone = self.state().reserve(bytes);
    }

    /// Until when nothing more should be asked for; none: now.
    pub fn free_at(&self) -> Option<Instant> {
        self.state().gone_at.filter(|gone_at| *gone_at > Instant::now())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When so many bytes may begin to go, and how long they take; none: there is no limit.
    fn reserve(&mut self, bytes: u64) -> Option<(Instant, Duration)> {
        let bytes_per_sec = self.bytes_per_sec.filter(|rate| *rate > 0)?;
        let now = Instant::now();
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = self.gone_at.map_or(earliest, |gone_at| gone_at.max(earliest));
        let takes = Duration::from_secs_f64(bytes as f64 / bytes_per_sec as f64);
        self.gone_at = Some(start + takes);
        Some((start, takes))
    }
}

/// A place in the line, given back if it is left early.
struct Turn<'a> {
    limit: &'a RateLimit,
    takes: Option<Duration>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(takes) = self.takes {
            let mut state = self.limit.state();
            state.gone_at = state.gone_at.and_then(|gone_at| gone_at.checked_sub(takes));
        }
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

        // Whoever leaves the line takes nothing with them.
        limit.take(1000).await;
        for _ in 0..100 {
            let left = tokio::time::timeout(Duration::from_millis(1), limit.take(1000)).await;
            assert!(left.is_err());
        }
        let before = Instant::now();
        limit.take(0).await;
        let waited = before.elapsed().as_secs_f64();
        assert!((0.7..=1.0).contains(&waited), "the line is as long as if nobody had left it: {waited} s");

        // Those in line need not wait when the limit is lifted.
        limit.take(1000).await;
        let before = Instant::now();
        tokio::join!(limit.take(1 << 30), limit.take(0), async { limit.set(None) });
        limit.take(1 << 40).await;
        assert!(before.elapsed().as_secs_f64() < 0.001);
    }
}
