//! A limit on bytes per second: of what a node sends to others, and of what it fetches, from whomever.

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
///
/// All who share it are together no faster than it allows, but for what may go at once after a pause, which is no more
/// however long the pause was. A piece of more than a second's worth goes whole, and the next one waits for it.
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
    /// So many bytes per second; none or zero: no limit.
    pub fn new(bytes_per_sec: Option<u64>) -> Self {
        let state = Mutex::new(State { bytes_per_sec, gone_at: None });
        Self(Arc::new(Inner { state, changed: Notify::new() }))
    }

    /// From now on it is this: who waits under the old one waits no longer.
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
        let Some((start, takes)) = self.state().reserve(bytes) else { return };
        let mut turn = Turn { limit: self, takes: Some(takes) };
        until(start, changed).await;
        turn.takes = None;
    }

    /// So many bytes have come, whether they might or not: what comes next has to wait for them.
    pub fn charge(&self, bytes: u64) {
        // It is known already that they have gone.
        let _gone = self.state().reserve(bytes);
    }

    /// The same, and waits until they might have come.
    pub async fn settle(&self, bytes: u64) {
        let changed = self.0.changed.notified();
        let Some((start, takes)) = self.state().reserve(bytes) else { return };
        until(start + takes, changed).await;
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

/// Waits for `time`, or until there is another limit: what was reserved under the old one is forgotten.
async fn until(time: Instant, changed: impl Future<Output = ()>) {
    tokio::select! {
        () = sleep_until(time) => {}
        () = changed => {}
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

    /// How long `of` takes, in seconds.
    async fn secs(of: impl Future<Output = ()>) -> f64 {
        let start = Instant::now();
        of.await;
        start.elapsed().as_secs_f64()
    }

    async fn together(takers: impl Iterator<Item = impl Future<Output = ()> + Send + 'static>) {
        for taker in takers.map(tokio::spawn).collect::<Vec<_>>() {
            taker.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_share_it_are_together_no_faster_than_it_allows() {
        let limit = RateLimit::new(Some(1000));
        let sent = |limit: RateLimit| async move { limit.take(500).await };
        let took = secs(together((0..10).map(|_| sent(limit.clone())))).await + secs(limit.take(0)).await;
        assert!((4.9..=5.0).contains(&took), "5000 bytes at 1000 a second were sent in {took} s");

        let limit = RateLimit::new(Some(1000));
        let fetched = |limit: RateLimit| async move {
            for _ in 0..10 {
                limit.settle(100).await;
            }
        };
        let took = secs(together((0..4).map(|_| fetched(limit.clone())))).await;
        assert!((3.9..=4.0).contains(&took), "4000 bytes at 1000 a second were fetched in {took} s");
        assert_eq!(limit.free_at(), None, "all have waited for what they fetched");
        limit.charge(500);
        assert!(limit.free_at().is_some());
        let took = secs(limit.settle(500)).await;
        assert!((0.9..=1.0).contains(&took), "what came unasked counts: {took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_pause_no_more_goes_at_once_however_long_it_was() {
        let limit = RateLimit::new(Some(1000));
        for pause in [Duration::from_secs(1), Duration::from_hours(10)] {
            tokio::time::sleep(pause).await;
            let mut at_once = 0;
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(1) {
                limit.settle(1).await;
                at_once += 1;
            }
            assert!((50..=53).contains(&at_once), "{at_once} bytes of the 50 that go in {BURST:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_of_more_than_a_second_goes_whole_and_the_next_one_waits_for_it() {
        let limit = RateLimit::new(Some(1000));
        assert!(secs(limit.take(4000)).await < 0.01, "nobody is before it");
        let took = secs(limit.take(1)).await;
        assert!((3.9..=4.0).contains(&took), "{took} s");
        let took = secs(limit.settle(4000)).await;
        assert!((3.9..=4.01).contains(&took), "{took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_line_takes_nothing_along_but_what_has_come_stays_counted() {
        let limit = RateLimit::new(Some(1000));
        let patience = Duration::from_millis(1);
        limit.take(1000).await;
        for _ in 0..100 {
            assert!(tokio::time::timeout(patience, limit.take(1000)).await.is_err());
        }
        let took = secs(limit.take(0)).await;
        assert!((0.7..=1.0).contains(&took), "the line is as long as if nobody had left it: {took} s");

        assert!(tokio::time::timeout(patience, limit.settle(1000)).await.is_err());
        let took = secs(limit.take(0)).await;
        assert!((0.9..=1.0).contains(&took), "{took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits_nor_does_who_waits_when_it_is_lifted() {
        let limit = RateLimit::new(Some(1000));
        limit.take(1000).await;
        let lifted = async {
            tokio::join!(limit.take(1 << 30), limit.settle(1 << 30), async { limit.set(None) });
            limit.take(1 << 40).await;
            limit.settle(1 << 40).await;
        };
        assert!(secs(lifted).await < 0.001);
        assert_eq!((limit.free_at(), limit.bytes_per_sec()), (None, None));
        let zero = RateLimit::new(Some(0));
        assert!(
            secs(async {
                tokio::join!(zero.take(1 << 40), zero.settle(1 << 40));
            })
            .await
                < 0.001
        );
    }
}
