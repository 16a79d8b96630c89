//! How fast bytes may come, at most.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// What may come at once after a time in which nothing came.
const BURST: Duration = Duration::from_millis(250);

/// A token bucket: whoever shares it takes turns, and all together are no faster than it allows.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_sec_max: u64,
    /// Until when what came so far keeps the line busy.
    busy_until: Mutex<Instant>,
}

impl Throttle {
    /// Lets so many bytes through in a second; at least one.
    pub fn new(bytes_per_sec_max: u64) -> Self {
        Self { bytes_per_sec_max: bytes_per_sec_max.max(1), busy_until: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` that have just come are within what is allowed.
    pub async fn take(&self, bytes: u64) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_sec_max as f64);
        let until = {
            let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *busy_until = (*busy_until).max(now.checked_sub(BURST).unwrap_or(now)) + takes;
            *busy_until
        };
        sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn those_who_share_it_are_together_no_faster_than_it_allows() {
        let throttle = Arc::new(Throttle::new(1000));
        let start = Instant::now();
        let takers = (0..4).map(|_| {
            let throttle = Arc::clone(&throttle);
            tokio::spawn(async move {
                for _ in 0..10 {
                    throttle.take(100).await;
                }
            })
        });
        for taker in takers.collect::<Vec<_>>() {
            taker.await.unwrap();
        }
        let took = start.elapsed();
        assert!((Duration::from_millis(3700)..Duration::from_millis(4100)).contains(&took), "{took:?}");
    }
}
