//! Reads of what comes slowly, a little later and more at once.
//!
//! A slow link brings a packet at a time, and each would wake the reader, TLS and HTTP/2 for what is a small part of a
//! record: most of the processor time of a slow transfer. So while much comes, but not fast, the reader lets a few
//! milliseconds' worth gather in the system before it looks again. What comes fast is read as it comes, and so is what is
//! little: questions, answers, heartbeats.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::hooked::{Hooked, ReadHook};

/// As much is let gather: about what TLS puts into one record.
const GATHERED_BYTES: f64 = 16.0 * 1024.0;
/// Longest wait for it. A piece takes longer than this on any link that is slow enough to wait.
const PAUSE_MAX: Duration = Duration::from_millis(4);
/// Shorter ones are not worth it: timers count in milliseconds.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// A connection that has brought no more than this within [`RATE_WINDOW`] is left alone.
const MUCH_BYTES: u64 = 32 << 10;
/// Over how long it is looked at how fast bytes come.
const RATE_WINDOW: Duration = Duration::from_millis(50);

/// A connection whose reads wait while what comes is slow.
pub(super) type Gathered<S> = Hooked<S, Pace>;

/// A connection whose reads wait while what comes is slow.
pub(super) fn gathered<S>(stream: S) -> Gathered<S> {
    let window = Window { since: Instant::now(), bytes: 0, wait: None };
    Hooked::new(stream, Pace { pause: None, is_paused: false, window })
}

/// When the next read may look.
#[derive(Debug)]
pub(super) struct Pace {
    /// Looked at again only then.
    pause: Option<Pin<Box<Sleep>>>,
    is_paused: bool,
    window: Window,
}

/// What has come of late.
#[derive(Debug)]
struct Window {
    since: Instant,
    bytes: u64,
    /// How long to wait after all has been read that was there; none: not at all.
    wait: Option<Duration>,
}

impl Window {
    /// So much was read.
    fn count(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes as u64;
        let passed = now - self.since;
        if passed < RATE_WINDOW {
            return;
        }
        let bytes_per_sec = self.bytes as f64 / passed.as_secs_f64();
        let wait = Duration::from_secs_f64(GATHERED_BYTES / bytes_per_sec.max(1.0)).min(PAUSE_MAX);
        let is_much = self.bytes > MUCH_BYTES && passed < 2 * RATE_WINDOW;
        *self = Self { since: now, bytes: 0, wait: (is_much && wait >= PAUSE_MIN).then_some(wait) };
    }
}

impl Pace {
    /// All that was there has been read.
    fn drained(&mut self, now: Instant) {
        let Some(wait) = self.window.wait else { return };
        match self.pause.as_mut() {
            Some(pause) => pause.as_mut().reset(now + wait),
            None => self.pause = Some(Box::pin(sleep_until(now + wait))),
        }
        self.is_paused = true;
    }
}

impl<S: AsyncRead> ReadHook<S> for Pace {
    fn poll_read(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_paused {
            if let Some(pause) = self.pause.as_mut() {
                ready!(pause.as_mut().poll(context));
            }
            self.is_paused = false;
        }
        let before = buffer.filled().len();
        ready!(stream.poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        let now = Instant::now();
        self.window.count(read, now);
        if read > 0 && buffer.remaining() > 0 {
            self.drained(now);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::sleep,
    };

    use super::*;

    /// Sends `packets` of so many bytes, one each `every`, and counts in how many reads they come.
    async fn reads(packets: usize, bytes: usize, every: Duration) -> usize {
        let (mut far, near) = duplex(1 << 20);
        let sender = tokio::spawn(async move {
            for _ in 0..packets {
                far.write_all(&vec![7; bytes]).await.unwrap();
                sleep(every).await;
            }
        });
        let (mut near, mut buffer) = (gathered(near), vec![0; 32 << 10]);
        let (mut reads, mut read) = (0, 0);
        loop {
            match near.read(&mut buffer).await.unwrap() {
                0 => break,
                more => read += more,
            }
            reads += 1;
        }
        sender.await.unwrap();
        assert_eq!(read, packets * bytes, "nothing is lost");
        reads
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_slowly_is_read_together_and_nothing_else() {
        let packet = |micros| reads(2000, 1448, Duration::from_micros(micros));
        let slow = packet(1000).await;
        assert!(slow < 700, "{slow} reads at 1.4 MB/s");
        let lone = reads(200, 200, Duration::from_millis(20)).await;
        assert_eq!(lone, 200, "each of few is read as it comes");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_alone_after_much_is_not_waited_for_twice() {
        let (mut far, near) = duplex(1 << 20);
        let mut near = gathered(near);
        let mut buffer = vec![0; 32 << 10];
        for _ in 0..200 {
            far.write_all(&[7; 1448]).await.unwrap();
            sleep(Duration::from_millis(1)).await;
            let _read = near.read(&mut buffer).await.unwrap();
        }
        far.write_all(b"end").await.unwrap();
        let start = Instant::now();
        let mut tail = near.read(&mut buffer).await.unwrap();
        while &buffer[..tail][tail - 3..] != b"end" {
            tail = near.read(&mut buffer).await.unwrap();
        }
        assert!(start.elapsed() <= 2 * PAUSE_MAX, "{:?}", start.elapsed());
    }
}
