//! The life of the process that answers: started when many wait, ended when nobody asks, when training needs the GPU, or
//! when it breaks its word.

use std::{collections::BTreeMap, io, path::Path, process::ExitStatus, sync::Arc, time::Duration};

use hatchery_common::{answerer::AnswererEvent, device::Device};
use tokio::time::{Instant, sleep_until, timeout};

use super::dispatch::{DispatchQueue, Served};
use crate::{
    machine::gpu_guard::{GpuGuard, Gpus},
    platform::Platform,
    replicas::models::ModelKey,
    session::backoff::Backoff,
    trainer::answerer::{AnswererProcess, Heard},
};

/// First and longest pause after a process that failed.
const PAUSE_FIRST: Duration = Duration::from_secs(10);
const PAUSE_LONGEST: Duration = Duration::from_mins(10);
/// How long one that was killed may take to be gone, before the log says so.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Most models with a pause of their own: some can never be on a GPU, and others are not to wait for them.
const PAUSES_MAX: usize = 64;

/// How long a process may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// To say that it is ready.
    pub(crate) ready: Duration,
    /// Without a word, while it has answers to make.
    pub(crate) silence: Duration,
    /// Without anything to do.
    pub(crate) idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { ready: Duration::from_mins(2), silence: Duration::from_secs(30), idle: Duration::from_mins(2) }
    }
}

/// Starts a process for the checkpoint in a folder.
type Start = Box<dyn Fn(&Path, Device) -> io::Result<AnswererProcess> + Send + Sync>;

/// Keeps the process, one at a time.
pub(crate) struct Supervisor {
    queue: DispatchQueue,
    gpus: Gpus,
    start: Start,
    limits: Limits,
    pauses: Pauses,
}

/// Models whose process failed, and when the next may be started.
#[derive(Debug)]
struct Pauses {
    /// The pauses of a model that has not failed yet.
    fresh: Backoff,
    of: BTreeMap<ModelKey, (Backoff, Instant)>,
}

impl Pauses {
    fn new(fresh: Backoff) -> Self {
        Self { fresh, of: BTreeMap::new() }
    }

    /// Notes a failure; gives the pause that follows.
    fn failed(&mut self, key: ModelKey) -> Duration {
        let fresh = || (self.fresh.clone(), Instant::now());
        let (pauses, until) = self.of.entry(key).or_insert_with(fresh);
        let pause = pauses.next_wait();
        *until = Instant::now() + pause;
        if self.of.len() > PAUSES_MAX {
            let soonest = self.of.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| *key);
            soonest.map(|key| self.of.remove(&key));
        }
        pause
    }

    fn succeeded(&mut self, key: ModelKey) {
        self.of.remove(&key);
    }

    fn is_paused(&self, key: ModelKey) -> bool {
        self.of.get(&key).is_some_and(|(_, until)| Instant::now() < *until)
    }

    /// Waits until a pause ends; for ever, where there is none.
    async fn next_end(&self) {
        let now = Instant::now();
        match self.of.values().map(|(_, until)| *until).filter(|until| now < *until).min() {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }
}

/// Why a process was ended, or has.
#[derive(Debug)]
enum End {
    /// Nobody asks any more.
    Idle,
    /// It is wanted for another checkpoint.
    Replaced,
    /// Training needs the GPU, or its owner does.
    Withdrawn,
    Failed(String),
}

impl Supervisor {
    /// One that starts processes on `platform`.
    pub(crate) fn new(queue: DispatchQueue, gpus: Gpus, platform: Arc<dyn Platform>) -> Self {
        let start = Box::new(move |checkpoint: &Path, device| platform.start_answerer(checkpoint, device));
        let pauses = Pauses::new(Backoff::new(PAUSE_FIRST, PAUSE_LONGEST));
        Self { queue, gpus, start, limits: Limits::default(), pauses }
    }

    /// Keeps it for as long as the agent lives.
    pub(crate) async fn run(mut self) {
        loop {
            let (served, gpu) = self.wanted().await;
            let checkpoint = served.key.0.short();
            let device = gpu.device;
            match self.serve(&served, gpu).await {
                End::Failed(why) => {
                    let pause = self.pauses.failed(served.key);
                    tracing::warn!(%checkpoint, %device, pause_secs = pause.as_secs(),
                        "answers are generated on the processor only for now: {why}");
                }
                end => tracing::info!(%checkpoint, %device, ?end, "stopped answering on the GPU"),
            }
        }
    }

    /// Waits until a process is worth it and there is a GPU for it.
    async fn wanted(&self) -> (Served, GpuGuard) {
        let (mut queue, mut gpus) = (self.queue.changes(), self.gpus.changes());
        loop {
            queue.mark_unchanged();
            gpus.mark_unchanged();
            if let Some(served) = self.queue.demand(|key| self.pauses.is_paused(key))
                && let Some(gpu) = self.gpus.take()
            {
                return (served, gpu);
            }
            // Both senders live in `self`.
            tokio::select! {
                _ = queue.changed() => {}
                _ = gpus.changed() => {}
                () = self.pauses.next_end() => {}
            }
        }
    }

    /// Starts a process, and attends to it until it is gone.
    async fn serve(&mut self, served: &Served, gpu: GpuGuard) -> End {
        let mut process = match (self.start)(&served.folder, gpu.device) {
            Ok(process) => process,
            Err(error) => return End::Failed(format!("cannot start the process: {error}")),
        };
        tracing::info!(checkpoint = %served.key.0.short(), device = %gpu.device, process = process.id(),
            "starting a process for answers: many are waiting");
        let end = self.attend(served, &gpu, &mut process).await;
        // Who was answered goes on on the processor at once.
        self.queue.close();
        clear(process, gpu).await;
        end
    }

    async fn attend(&mut self, served: &Served, gpu: &GpuGuard, process: &mut AnswererProcess) -> End {
        let mut queue = self.queue.changes();
        let (mut is_ready, mut was_busy, mut since) = (false, false, Instant::now());
        loop {
            queue.mark_unchanged();
            let is_busy = self.queue.in_progress() > 0;
            if is_ready && self.queue.is_wanted_otherwise(served.key, |key| self.pauses.is_paused(key)) {
                return End::Replaced;
            }
            if is_busy != was_busy {
                (was_busy, since) = (is_busy, Instant::now());
            }
            let limit = match (is_ready, is_busy) {
                (false, _) => self.limits.ready,
                (true, true) => self.limits.silence,
                (true, false) => self.limits.idle,
            };
            let heard = tokio::select! {
                biased;
                () = gpu.withdrawn() => return End::Withdrawn,
                heard = process.hear() => heard,
                _ = queue.changed() => continue,
                () = sleep_until(since + limit) => return match (is_ready, is_busy) {
                    (true, false) => End::Idle,
                    (true, true) => failed(process, &format!("it did not report for {} s", limit.as_secs())),
                    (false, _) => failed(process, &format!("it was not ready within {} s", limit.as_secs())),
                },
            };
            let taken_in = match heard {
                Heard::Exited(status) => Err(in_words(status)),
                Heard::Event(AnswererEvent::Ready { sequences_max, pace, .. }) if !is_ready => {
                    is_ready = true;
                    tracing::info!(sequences_max, ?pace, "answering on the GPU");
                    let commands = process.commands().clone();
                    self.queue.open(served.key, gpu.device, sequences_max, pace, commands)
                }
                Heard::Event(event) => {
                    if matches!(event, AnswererEvent::Finished { .. }) {
                        self.pauses.succeeded(served.key);
                    }
                    self.queue.hear(event)
                }
            };
            if let Err(why) = taken_in {
                return failed(process, &why);
            }
            if is_ready {
                since = Instant::now();
            }
        }
    }
}

/// Ends a process. Its GPU is given back when it is gone, also where that takes long: one that hangs in the driver keeps it.
async fn clear(process: AnswererProcess, gpu: GpuGuard) {
    let (id, device) = (process.id(), gpu.device);
    let ending = tokio::spawn(async move {
        process.end().await;
        drop(gpu);
    });
    if timeout(GONE_WITHIN, ending).await.is_err() {
        tracing::error!(process = id, %device,
            "an answering process does not exit although it was killed; its GPU answers nothing until it \
             does");
    }
}

fn in_words(status: ExitStatus) -> String {
    format!("it exited unexpectedly ({status})")
}

fn failed(process: &AnswererProcess, why: &str) -> End {
    let last_line = process.last_line();
    let said = if last_line.is_empty() { String::new() } else { format!("; its last line: {last_line}") };
    End::Failed(format!("the process failed: {why}{said}"))
}

#[cfg(test)]
mod tests;
