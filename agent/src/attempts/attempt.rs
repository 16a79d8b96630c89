//! One attempt, from its assignment to its end: fetch what it needs, run its trainer, deliver its checkpoints.
//!
//! An agent that was started again while its lease lives takes the attempt up under the same epoch, from the newest of:
//! a finished checkpoint folder of this attempt, the last one that it committed, and the one that it was assigned. A
//! local one counts only if its step is not below the assigned one's.

use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::{Duration, Instant},
};

use hatchery_common::{
    checkpoint::ReplicaForm,
    device::{Device, DeviceKind},
    durable::{self, FileError},
    id::CheckpointId,
    recipe::Precision,
    session::AssignedAttempt,
    time::BootTime,
    trainer::{AttemptOrder, Ending, FailureCause, Progress, TrainerCommand, TrainerEvent, Validation},
};
use hatchery_net::RateLimit;
use hatchery_proto::client::CallError;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::delivery::{Delivery, Finished, QueueLimits};
use crate::{
    machine::{gpu_guard::Gpus, nvidia},
    platform::{Platform, Trainer},
    reconcile::{AttemptKey, StopReason},
    replicas::{corpora::Corpora, error::FetchError, fetch::Fetcher, self_test::SelfTester},
    trainer::{orphan, process::Heard, stderr_log::StderrLog},
};

/// Most bytes of output shown with a failure.
pub(crate) const LAST_OUTPUT_BYTES_MAX: usize = 8 * 1024;
/// Of why a trainer is slower than it could be, so much is shown.
const REASON_BYTES_MAX: usize = 300;
/// How long an attempt waits for blobs that the coordinator has lost: nodes that hold them bring them again.
const LOST_BLOB_WITHIN: Duration = Duration::from_mins(30);
/// The order that a trainer is given.
const ORDER_FILE: &str = "order.json";
/// What the attempt was assigned.
const ASSIGNED_FILE: &str = "assigned.json";
const ASSIGNED_BYTES_MAX: u64 = 1 << 20;
/// The last checkpoint that the coordinator took.
const COMMITTED_FILE: &str = "committed.json";
const COMMITTED_BYTES_MAX: u64 = 4096;
/// Where the trainer writes.
const CHECKPOINTS_FOLDER: &str = "checkpoints";

/// What an attempt is told; the newest counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Orders {
    /// When the trainer is to stop by itself.
    pub(crate) stop_by: Option<BootTime>,
    /// To write a checkpoint and stop.
    pub(crate) stop: Option<StopReason>,
    /// To end at once.
    pub(crate) kill: bool,
}

/// What an attempt tells.
#[derive(Clone, Debug)]
pub(crate) enum AttemptUpdate {
    /// So much is here of what it needs.
    Fetching {
        done_bytes: u64,
        total_bytes: u64,
    },
    /// It goes on from a checkpoint that is here, or made one: that one is in use.
    Uses(CheckpointId),
    /// Its trainer was started.
    Starting,
    /// Its trainer makes steps, on this device with this arithmetic.
    Running(String),
    Progress(Progress),
    Validation(Validation),
    /// Its trainer is gone, its checkpoints are on their way.
    Delivering,
    Ended {
        ending: Ending,
        last_output: String,
    },
}

/// What an attempt works with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) fetcher: Fetcher,
    pub(crate) corpora: Corpora,
    pub(crate) cpu_threads: u32,
    pub(crate) queue_limits: QueueLimits,
    pub(crate) self_tester: SelfTester,
    pub(crate) gpus: Gpus,
    /// Told whenever a trainer wrote something for people.
    pub(crate) output_grew: Arc<tokio::sync::Notify>,
}

/// One attempt at work.
pub(crate) struct Attempt {
    pub(crate) assigned: Arc<AssignedAttempt>,
    pub(crate) folder: PathBuf,
    pub(crate) log: StderrLog,
    pub(crate) context: Context,
    pub(crate) orders: watch::Receiver<Orders>,
    pub(crate) updates: mpsc::Sender<(AttemptKey, AttemptUpdate)>,
}

/// What a trainer needs.
struct Supplies {
    corpus: PathBuf,
    /// What the attempt begins with.
    begin: Begin,
}

/// What an attempt begins with.
enum Begin {
    Anew,
    /// With all of the checkpoint in this folder.
    Resume(PathBuf),
    /// With the weights of the checkpoint in this folder.
    FineTune(PathBuf),
}

#[derive(Serialize, Deserialize)]
struct Committed {
    checkpoint: CheckpointId,
    step: u64,
}

impl Attempt {
    /// Does all of it; the last update is [`AttemptUpdate::Ended`].
    pub(crate) async fn run(mut self) {
        let delivery = Delivery::new(
            self.context.fetcher.clone(),
            Arc::clone(&self.assigned),
            self.context.queue_limits,
            self.context.self_tester.clone(),
            self.log.clone(),
        );
        let leftovers = Finished::in_folder(&self.checkpoints());
        let newest_leftover = leftovers.last().cloned();
        if let Some(newest) = &newest_leftover {
            delivery.keep(&newest.folder);
        }
        for finished in leftovers {
            delivery.add(finished);
        }
        let delivering = AbortOnDropHandle::new(tokio::spawn(delivery.clone().run(self.on_delivered())));

        let ending =
            if self.assigned.stop { Ending::Stopped } else { self.train(&delivery, newest_leftover).await };
        self.tell(AttemptUpdate::Delivering).await;
        delivery.add_unannounced(&self.checkpoints());
        delivery.close();
        if delivering.await.is_err() {
            tracing::error!(job = %self.assigned.job, "the delivery of checkpoints failed");
        }
        let failed = matches!(ending, Ending::Failed { .. });
        let last_output = if failed { self.log.tail(LAST_OUTPUT_BYTES_MAX) } else { String::new() };
        self.tell(AttemptUpdate::Ended { ending, last_output }).await;
    }

    /// Whether an attempt's folder has checkpoints that may not have been delivered.
    pub(crate) fn has_leftovers(folder: &Path) -> bool {
        !Finished::in_folder(&folder.join(CHECKPOINTS_FOLDER)).is_empty()
    }

    /// Notes in an attempt's folder what it was assigned.
    pub(crate) fn write_assigned(folder: &Path, assigned: &AssignedAttempt) -> Result<(), FileError> {
        let text = serde_json::to_vec(assigned).expect("ids, text and checked numbers are always JSON");
        durable::write_atomically(&folder.join(ASSIGNED_FILE), &text)
    }

    /// What the attempt of a folder was assigned.
    pub(crate) fn read_assigned(folder: &Path) -> Option<AssignedAttempt> {
        let text = durable::read_limited(&folder.join(ASSIGNED_FILE), ASSIGNED_BYTES_MAX).ok()?;
        serde_json::from_slice(&text).ok()
    }

    async fn train(&mut self, delivery: &Delivery, leftover: Option<Finished>) -> Ending {
        let mut orders = self.orders.clone();
        let supplies = tokio::select! {
            supplies = self.supplies(leftover) => supplies,
            ending = told_to_end(&mut orders) => return ending,
        };
        let order = match supplies {
            Ok(supplies) => self.order(supplies),
            Err(ending) => return ending,
        };
        self.tell(AttemptUpdate::Starting).await;
        // The GPU's memory is the trainer's.
        tokio::select! {
            () = self.context.gpus.vacated(self.assigned.device) => {}
            ending = told_to_end(&mut orders) => return ending,
        }
        let process = match self.start(&order) {
            Ok(process) => process,
            Err(ending) => return ending,
        };
        self.listen(process, delivery).await
    }

    /// Gets corpus and checkpoint, however long it takes; an error is how the attempt ends.
    async fn supplies(&self, leftover: Option<Finished>) -> Result<Supplies, Ending> {
        let mut retries = self.context.fetcher.coordinator().retries();
        let mut lost_since = None;
        loop {
            match self.try_supplies(leftover.as_ref()).await {
                Ok(supplies) => return Ok(supplies),
                Err(error) => {
                    if let Some(cause) = error.cause() {
                        return Err(failed(cause, format!("cannot fetch its inputs: {error}")));
                    }
                    if !error.is_lost_blob() {
                        lost_since = None;
                    } else if lost_since.get_or_insert_with(Instant::now).elapsed() >= LOST_BLOB_WITHIN {
                        let message = format!("the coordinator has lost its inputs: {error}");
                        return Err(failed(FailureCause::Unavailable, message));
                    }
                    tracing::warn!(job = %self.assigned.job.short(), %error, "an attempt waits for its inputs");
                }
            }
            retries.wait().await;
        }
    }

    async fn try_supplies(&self, leftover: Option<&Finished>) -> Result<Supplies, FetchError> {
        let told = |done_bytes, total_bytes| {
            // One of many: the next says more.
            let _full = self.updates.try_send((
                AttemptKey::of(&self.assigned),
                AttemptUpdate::Fetching { done_bytes, total_bytes },
            ));
        };
        let corpus = self.context.corpora.fetch(self.assigned.spec.dataset, told).await?;
        let begin = self.begin(leftover, told).await?;
        Ok(Supplies { corpus, begin })
    }

    async fn begin(
        &self,
        leftover: Option<&Finished>,
        told: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<Begin, FetchError> {
        let fetcher = &self.context.fetcher;
        let spec = &self.assigned.spec;
        let assigned_step = match self.assigned.resume_from {
            Some(id) if !spec.fine_tunes(id) => fetcher.manifest(id).await?.step,
            _ => 0,
        };
        let committed = self.committed().filter(|committed| committed.step >= assigned_step);
        let local_step = committed.as_ref().map_or(assigned_step, |committed| committed.step);
        if let Some(leftover) = leftover.filter(|leftover| leftover.step >= local_step) {
            return Ok(Begin::Resume(leftover.folder.clone()));
        }
        if let Some(Committed { checkpoint, .. }) = committed {
            match self.resume(checkpoint, &told).await {
                // Others may have taken its place meanwhile, and it is kept no longer.
                Err(FetchError::Call(CallError::NotFound(why))) => {
                    tracing::warn!(job = %self.assigned.job.short(), why, "its committed checkpoint is missing; resuming from the assigned one");
                }
                other => return other,
            }
        }
        match self.assigned.resume_from {
            Some(id) => self.resume(id, &told).await,
            None => Ok(Begin::Anew),
        }
    }

    /// Gets a checkpoint to begin with.
    async fn resume(
        &self,
        id: CheckpointId,
        told: &(impl Fn(u64, u64) + Send + Sync),
    ) -> Result<Begin, FetchError> {
        let (fetcher, spec) = (&self.context.fetcher, &self.assigned.spec);
        self.tell(AttemptUpdate::Uses(id)).await;
        fetcher.fetch(id, ReplicaForm::Whole, &RateLimit::new(None), told).await?;
        Ok(match fetcher.store().folder(id) {
            Some((folder, _)) if spec.fine_tunes(id) => Begin::FineTune(folder),
            Some((folder, _)) => Begin::Resume(folder),
            None => Begin::Anew,
        })
    }

    fn committed(&self) -> Option<Committed> {
        let text = durable::read_limited(&self.folder.join(COMMITTED_FILE), COMMITTED_BYTES_MAX).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn on_delivered(&self) -> impl Fn(CheckpointId, u64) + Send + use<> {
        let (path, updates) = (self.folder.join(COMMITTED_FILE), self.updates.clone());
        let key = AttemptKey::of(&self.assigned);
        move |checkpoint, step| {
            let text =
                serde_json::to_vec(&Committed { checkpoint, step }).expect("two numbers are always JSON");
            if let Err(error) = durable::write_atomically(&path, &text) {
                tracing::warn!(%error, "cannot record the committed checkpoint");
            }
            // Only if it is told is the checkpoint kept from being dropped; it could be fetched again.
            let _full = updates.try_send((key, AttemptUpdate::Uses(checkpoint)));
        }
    }

    fn order(&self, supplies: Supplies) -> AttemptOrder {
        let spec = &self.assigned.spec;
        let (resume_from, fine_tune_from) = match supplies.begin {
            Begin::Anew => (None, None),
            Begin::Resume(folder) => (Some(folder), None),
            Begin::FineTune(folder) => (None, Some(folder)),
        };
        AttemptOrder {
            job: self.assigned.job,
            epoch: self.assigned.epoch,
            model: spec.model.clone(),
            train: spec.train.clone(),
            corpus: supplies.corpus,
            device: self.assigned.device,
            threads: self.context.cpu_threads,
            checkpoints: self.checkpoints(),
            resume_from,
            fine_tune_from,
            lease_until: self.orders.borrow().stop_by,
        }
    }

    fn start(&self, order: &AttemptOrder) -> Result<Box<dyn Trainer>, Ending> {
        let path = self.folder.join(ORDER_FILE);
        let text = serde_json::to_vec_pretty(order).expect("an order is always JSON");
        let written =
            durable::create_folder(&order.checkpoints).and_then(|()| durable::write_atomically(&path, &text));
        written.map_err(|error: FileError| failed(FailureCause::Storage, error.to_string()))?;
        let grew = Arc::clone(&self.context.output_grew);
        let platform = &self.context.platform;
        let started = platform.start_trainer(&path, &self.log, Box::new(move || grew.notify_one()));
        let process = started.map_err(|error| {
            let message = format!("cannot start the trainer {}: {error}", platform.trainer().display());
            failed(FailureCause::Unavailable, message)
        })?;
        tracing::info!(job = %self.assigned.job.short(), epoch = %self.assigned.epoch, process = process.id(),
            device = %self.assigned.device, "trainer started");
        Ok(process)
    }

    async fn listen(&mut self, mut process: Box<dyn Trainer>, delivery: &Delivery) -> Ending {
        let mut orders = self.orders.clone();
        orders.mark_changed();
        let mut obeyed = Orders::default();
        let mut said = None;
        let status = loop {
            tokio::select! {
                heard = process.hear() => match heard {
                    Heard::Event(TrainerEvent::Ended(ending)) => said = Some(ending),
                    Heard::Event(event) => self.pass_on(event, delivery).await,
                    Heard::Exited(status) => break status,
                },
                // The agent's own end drops this whole attempt, and kills the trainer.
                Ok(()) = orders.changed() => {
                    let newest = *orders.borrow_and_update();
                    obey(process.as_ref(), obeyed, newest);
                    obeyed = newest;
                }
            }
        };
        drop(process);
        orphan::forget(&self.folder);
        ending_of(said, status, *orders.borrow())
    }

    async fn pass_on(&self, event: TrainerEvent, delivery: &Delivery) {
        match event {
            TrainerEvent::Started { device, precision, slower_because, .. } => {
                let precision = match precision {
                    Precision::Bf16 => "bf16",
                    Precision::F32 | Precision::Auto => "f32",
                };
                let slower = slower_because.map_or_else(String::new, |why| {
                    let start = &why[..why.floor_char_boundary(REASON_BYTES_MAX)];
                    format!("; slower than possible: {start}")
                });
                self.tell(AttemptUpdate::Running(format!("{device}, {precision}{slower}"))).await;
            }
            TrainerEvent::Progress(mut progress) => {
                if let Device { kind: DeviceKind::Cuda, index } = self.assigned.device {
                    let now = nvidia::now(index).await;
                    progress.power_watts = now.power_watts;
                    progress.gpu = now.reading;
                }
                self.tell(AttemptUpdate::Progress(progress)).await;
            }
            TrainerEvent::Validation(validation) => self.tell(AttemptUpdate::Validation(validation)).await,
            TrainerEvent::Checkpoint { folder, step, metrics } => {
                // A trainer says nothing else, but it is another process.
                if folder.parent() == Some(&self.checkpoints()) {
                    delivery.add(Finished { folder, step, metrics });
                } else {
                    tracing::warn!(folder = %folder.display(), "a trainer reported a checkpoint outside its folder");
                }
            }
            // What these say stands in the checkpoints too.
            TrainerEvent::TrainLoss(_) | TrainerEvent::EarlyStop { .. } | TrainerEvent::Ended(_) => {}
        }
    }

    async fn tell(&self, update: AttemptUpdate) {
        // Nobody listens any more only when the agent ends, and this attempt with it.
        let _nobody = self.updates.send((AttemptKey::of(&self.assigned), update)).await;
    }

    fn checkpoints(&self) -> PathBuf {
        self.folder.join(CHECKPOINTS_FOLDER)
    }
}

/// Waits until told to stop or to end; gives how that ends an attempt that has no trainer yet.
async fn told_to_end(orders: &mut watch::Receiver<Orders>) -> Ending {
    let told = orders.wait_for(|orders| orders.kill || orders.stop.is_some()).await.map(|orders| *orders);
    match told {
        Ok(orders) => stopped_ending(orders),
        // The agent ends, and this attempt with it.
        Err(_) => std::future::pending().await,
    }
}

/// Does what is new in the orders.
fn obey(process: &dyn Trainer, before: Orders, now: Orders) {
    if now.kill {
        process.kill();
    } else if now.stop.is_some() && before.stop.is_none() {
        process.terminate();
    }
    if let Some(until) = now.stop_by.filter(|_| now.stop_by != before.stop_by) {
        process.tell(TrainerCommand::Lease { until });
    }
}

/// How a run ended, from its own words, its exit, and what it was told.
fn ending_of(said: Option<Ending>, status: ExitStatus, orders: Orders) -> Ending {
    match said {
        Some(Ending::Stopped) if orders.stop.is_some() => stopped_ending(orders),
        Some(said) => said,
        None if orders.kill || orders.stop.is_some() => stopped_ending(orders),
        None => failed(
            FailureCause::Crashed,
            format!("the trainer exited without a report: {}", in_words(status)),
        ),
    }
}

fn stopped_ending(orders: Orders) -> Ending {
    match orders.stop {
        Some(StopReason::Asked | StopReason::Leaving) => Ending::Stopped,
        Some(StopReason::NodeAway) => Ending::NodeAway,
        Some(StopReason::LeaseEnds) | None => Ending::LeaseExpired,
    }
}

fn in_words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "killed by signal 9, probably because the system ran out of memory".to_owned(),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn failed(cause: FailureCause, message: String) -> Ending {
    Ending::Failed { cause, message }
}

/// The folder of an attempt: `JOB-EPOCH`.
pub(crate) fn folder_name(key: AttemptKey) -> String {
    format!("{}-{}", key.job, key.epoch)
}

/// The attempt that a folder belongs to.
pub(crate) fn key_of_folder(path: &Path) -> Option<AttemptKey> {
    let (job, epoch) = path.file_name()?.to_str()?.split_once('-')?;
    Some(AttemptKey { job: job.parse().ok()?, epoch: hatchery_common::id::Epoch(epoch.parse().ok()?) })
}
