//! Bringing the checkpoints of one attempt to the coordinator: in their order, again and again until they are taken or
//! turn out to be of no use. Each is offered before its bytes are sent: an attempt that has lost its lease may have come
//! further than the one that has it now, and then its checkpoints still count.
//!
//! What waits lies in the attempt's folder as the trainer wrote it, so it survives the agent. When too much waits, or the
//! disk grows too full, older ones that still wait give way to the newest.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use hatchery_bdh::{LoadError, Model, ServingError, write_serving_weights};
use hatchery_common::{
    blob::BlobError,
    checkpoint::{CheckpointFile, CheckpointManifest, ReplicaForm, SERVING_FILE},
    faults,
    id::{BlobId, CheckpointId},
    recipe::ReplicaWeights,
    self_test::SelfTest,
    session::AssignedAttempt,
};
use hatchery_net::{blocking, transfer::TransferError};
use hatchery_proto::client::CallError;
use tokio::sync::{Notify, OnceCell};

use super::finished::Finished;
use crate::{
    files::remove_folder,
    replicas::{fetch::Fetcher, self_test::SelfTester, store::CheckpointStoreError},
    trainer::stderr_log::StderrLog,
};

/// How often the coordinator may refuse a checkpoint before it is given up: the first refusal may be about blobs that
/// got lost on the way.
const REFUSALS_MAX: u32 = 3;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    /// What stays free on the disk.
    pub(crate) free_disk_bytes_min: u64,
    /// Most bytes of one attempt's checkpoints.
    pub(crate) undelivered_bytes_max: u64,
}

/// The queue of one attempt; clones share it.
#[derive(Clone)]
pub(crate) struct Delivery {
    fetcher: Fetcher,
    attempt: Arc<AssignedAttempt>,
    queue: Arc<Mutex<Queue>>,
    changed: Arc<Notify>,
    limits: QueueLimits,
    self_tester: SelfTester,
    /// What people see of the attempt: why a checkpoint waits is said there too.
    log: StderrLog,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Finished>,
    /// The highest step that was added.
    newest_step: Option<u64>,
    closed: bool,
    /// The folder that the trainer goes on from: it stays.
    kept: Option<PathBuf>,
}

impl Queue {
    /// Takes out the oldest ones, until the rest is within its limits. The first stays, for it is being delivered just now,
    /// and so does the newest.
    fn make_room(&mut self, free_bytes: u64, limits: QueueLimits) -> Vec<Finished> {
        let waiting_bytes: u64 = self.waiting.iter().map(Finished::size_bytes).sum();
        let excess = |freed: u64| {
            waiting_bytes - freed > limits.undelivered_bytes_max
                || free_bytes.saturating_add(freed) < limits.free_disk_bytes_min
        };
        let (mut freed, mut superseded) = (0, Vec::new());
        while self.waiting.len() > 2 && excess(freed) {
            let Some(oldest) = self.waiting.remove(1) else { break };
            freed += oldest.size_bytes();
            superseded.push(oldest);
        }
        superseded
    }
}

#[derive(Debug, thiserror::Error)]
enum DeliverError {
    #[error("it was declined: {0}")]
    Declined(String),
    #[error("the coordinator: {0}")]
    Call(#[from] CallError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Store(#[from] CheckpointStoreError),
    #[error(transparent)]
    Serving(#[from] ServingError),
}

/// What is made of a checkpoint once, however often it is tried to deliver it.
#[derive(Default)]
struct Made {
    /// What weights for replicas that only answer come to; none: there are none.
    serving: OnceCell<Option<SelfTest>>,
    answered: OnceCell<Option<SelfTest>>,
}

impl Delivery {
    pub(crate) fn new(
        fetcher: Fetcher,
        attempt: Arc<AssignedAttempt>,
        limits: QueueLimits,
        self_tester: SelfTester,
        log: StderrLog,
    ) -> Self {
        Self { fetcher, attempt, queue: Arc::default(), changed: Arc::default(), limits, self_tester, log }
    }

    /// Adds what lies in a folder and was not added yet: a trainer that is killed may not have come to announce its last.
    pub(crate) fn add_unannounced(&self, folder: &Path) {
        let newest = self.queue.lock().unwrap_or_else(PoisonError::into_inner).newest_step;
        let unannounced = Finished::in_folder(folder).into_iter().filter(|found| Some(found.step) > newest);
        unannounced.for_each(|found| self.add(found));
    }

    /// Adds a finished checkpoint.
    pub(crate) fn add(&self, finished: Finished) {
        // Without a figure the disk counts as full enough to be careful.
        let free_bytes = self.fetcher.store().blobs().free_bytes().unwrap_or(0);
        let superseded = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.newest_step = queue.newest_step.max(Some(finished.step));
            queue.waiting.push_back(finished);
            queue.make_room(free_bytes, self.limits)
        };
        for finished in superseded {
            self.tell(&format!(
                "no space for more: the waiting checkpoint of step {} is dropped for a newer one",
                finished.step
            ));
            self.remove(&finished);
        }
        self.changed.notify_one();
    }

    /// Keeps a folder after its delivery, because the trainer reads it.
    pub(crate) fn keep(&self, folder: &Path) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).kept = Some(folder.to_owned());
    }

    /// No more will come: [`Delivery::run`] ends when all are delivered.
    pub(crate) fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
    }

    /// Delivers until closed and empty. `delivered` hears of each that was taken.
    pub(crate) async fn run(self, delivered: impl Fn(CheckpointId, u64) + Send) {
        loop {
            let next = {
                let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.closed && queue.waiting.is_empty() {
                    return;
                }
                queue.waiting.front().cloned()
            };
            let Some(next) = next else {
                self.changed.notified().await;
                continue;
            };
            if let Some(id) = self.deliver(&next).await {
                delivered(id, next.step);
            }
            self.queue.lock().unwrap_or_else(PoisonError::into_inner).waiting.pop_front();
            self.remove(&next);
        }
    }

    /// Delivers one, however long that takes. None: it is of no use to the coordinator.
    async fn deliver(&self, finished: &Finished) -> Option<CheckpointId> {
        let (job, step) = (self.attempt.id.job.short(), finished.step);
        let mut retries = self.fetcher.coordinator().retries();
        let mut refusals = 0;
        let made = Made::default();
        let mut complaint = String::new();
        loop {
            match self.try_deliver(finished, &made).await {
                Ok(id) => {
                    tracing::info!(%job, step, checkpoint = %id.short(), "checkpoint committed");
                    return Some(id);
                }
                Err(DeliverError::Declined(why) | DeliverError::Call(CallError::NotFound(why))) => {
                    self.tell(&format!("the coordinator declined the checkpoint of step {step}: {why}"));
                    return None;
                }
                Err(DeliverError::Call(CallError::Refused(why))) => {
                    refusals += 1;
                    if refusals == REFUSALS_MAX {
                        self.tell(&format!("the coordinator refused the checkpoint of step {step}: {why}"));
                        return None;
                    }
                }
                Err(error) => {
                    let reason = error.to_string();
                    // Once for each reason: this goes on for as long as it takes.
                    if reason != complaint {
                        self.tell(&format!("the checkpoint of step {step} is waiting: {reason}"));
                        complaint = reason;
                    }
                }
            }
            retries.wait().await;
        }
    }

    /// Says it to who looks at the job as well as to who looks at the agent.
    fn tell(&self, what: &str) {
        tracing::warn!(job = %self.attempt.id.job.short(), epoch = %self.attempt.id.epoch, "{what}");
        if let Err(error) = self.log.append(format!("[agent] {what}\n").as_bytes()) {
            tracing::warn!(%error, "cannot append to the attempt's log");
        }
    }

    /// What the checkpoint answers here, for all who get it to come to the same. One that does not answer is delivered all
    /// the same: going on from it may be possible.
    async fn self_test(&self, finished: &Finished, serving: Option<SelfTest>) -> Option<SelfTest> {
        let self_test = self.answer(finished, Model::load).await?;
        Some(SelfTest { serving: serving.map(Box::new), ..self_test })
    }

    async fn answer(
        &self,
        finished: &Finished,
        load: fn(&Path) -> Result<Model, LoadError>,
    ) -> Option<SelfTest> {
        let folder = finished.folder.clone();
        let load = move || load(&folder).map(Arc::new).map_err(|error| error.to_string());
        match self.self_tester.run(load).await {
            Ok(answered) => Some(answered.self_test),
            Err(why) => {
                self.tell(&format!("the checkpoint of step {} fails to answer: {why}", finished.step));
                None
            }
        }
    }

    /// Adds the weights for replicas that only answer, if the job wishes for them, and gives what they answer; none: there
    /// are none. Of weights that have none (they are no numbers, for instance), or do not answer in bf16, all is delivered
    /// and replicated all the same.
    async fn add_serving_weights(&self, finished: &Finished) -> Result<Option<SelfTest>, DeliverError> {
        if self.attempt.spec.replicate.weights != ReplicaWeights::Bf16 {
            return Ok(None);
        }
        let (folder, store) = (finished.folder.clone(), self.fetcher.store().clone());
        let written = blocking(move || match write_serving_weights(&folder) {
            Err(ServingError::File(error)) if error.is_full() && store.make_room()? => {
                Ok::<_, DeliverError>(write_serving_weights(&folder))
            }
            other => Ok(other),
        });
        match written.await? {
            Ok(()) => Ok(self.answer(finished, Model::load_serving).await),
            Err(error @ (ServingError::File(_) | ServingError::Load(LoadError::Unreadable { .. }))) => {
                Err(error.into())
            }
            Err(ServingError::Load(error)) => {
                self.tell(&format!(
                    "the checkpoint of step {} is replicated in full, not in bf16: {error}",
                    finished.step
                ));
                Ok(None)
            }
        }
    }

    async fn try_deliver(&self, finished: &Finished, made: &Made) -> Result<CheckpointId, DeliverError> {
        let clients = self.fetcher.coordinator().clients().await;
        clients
            .agents
            .offer_checkpoint(self.attempt.id, finished.step)
            .await?
            .map_err(DeliverError::Declined)?;
        let serving = made.serving.get_or_try_init(|| self.add_serving_weights(finished)).await?;
        let has_serving = serving.is_some();
        let (store, attempt, source) =
            (self.fetcher.store().clone(), Arc::clone(&self.attempt), finished.clone());
        let manifest = blocking(move || match take_over(store.blobs(), &attempt, &source, has_serving) {
            Err(error) if error.is_for_want_of_room() && store.make_room()? => {
                Ok(take_over(store.blobs(), &attempt, &source, has_serving)?)
            }
            other => other.map_err(DeliverError::from),
        })
        .await?;
        let manifest = Arc::new(manifest);
        let blobs: Vec<BlobId> = manifest.files.iter().map(|file| file.blob).collect();
        let _pins = self.fetcher.store().pin(blobs.clone());
        clients.blobs.put(&blobs, self.fetcher.store().blobs(), |_| {}).await?;
        let self_test = made.answered.get_or_init(|| self.self_test(finished, serving.clone())).await.clone();
        faults::strikes("deliver::before_commit");
        let id = clients.agents.commit_checkpoint(&manifest, self_test).await?;
        faults::strikes("deliver::after_commit");
        let store = self.fetcher.store().clone();
        blocking(move || store.install(&manifest, ReplicaForm::Whole)).await?;
        Ok(id)
    }

    fn remove(&self, finished: &Finished) {
        let kept = self.queue.lock().unwrap_or_else(PoisonError::into_inner).kept.clone();
        if kept.as_ref() != Some(&finished.folder)
            && let Err(error) = remove_folder(&finished.folder)
        {
            tracing::warn!(%error, "cannot remove the folder of a delivered checkpoint");
        }
    }
}

/// Copies the files into the blob store and says what they are.
fn take_over(
    blobs: &hatchery_common::blob::BlobStore,
    attempt: &AssignedAttempt,
    finished: &Finished,
    has_serving: bool,
) -> Result<CheckpointManifest, BlobError> {
    let files = CheckpointManifest::FILES
        .into_iter()
        .chain(has_serving.then_some(SERVING_FILE))
        .map(|name| {
            let blob = blobs.put_file(&finished.folder.join(name))?;
            let size_bytes = blobs.size(blob).ok_or(BlobError::NotFound { id: blob })?;
            Ok(CheckpointFile { name: name.to_owned(), blob, size_bytes })
        })
        .collect::<Result<_, BlobError>>()?;
    Ok(CheckpointManifest {
        job: attempt.id.job,
        epoch: attempt.id.epoch,
        step: finished.step,
        parent: attempt.resume_from,
        dataset: attempt.spec.dataset,
        model: attempt.spec.model.clone(),
        block: attempt.spec.train.raw().block,
        metrics: finished.metrics,
        files,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_ones_give_way_as_far_as_the_limits_ask_for() {
        let folder = tempfile::tempdir().unwrap();
        let finished = |step: u64| {
            let folder = folder.path().join(step.to_string());
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join(CheckpointManifest::FILES[1]), [0; 100]).unwrap();
            Finished { folder, step, metrics: hatchery_common::trainer::Metrics::default() }
        };
        let all: VecDeque<Finished> = (1..=6).map(finished).collect();
        let limits = |undelivered_bytes_max, free_disk_bytes_min| QueueLimits {
            free_disk_bytes_min,
            undelivered_bytes_max,
        };
        for (free_bytes, limits, left) in [
            (1000, limits(600, 1000), vec![1, 2, 3, 4, 5, 6]),
            (1000, limits(599, 0), vec![1, 3, 4, 5, 6]),
            (1000, limits(0, 0), vec![1, 6]),
            (1000, limits(600, 1001), vec![1, 3, 4, 5, 6]),
            (1000, limits(600, 1201), vec![1, 5, 6]),
            (0, limits(u64::MAX, u64::MAX), vec![1, 6]),
        ] {
            let mut queue = Queue { waiting: all.clone(), ..Queue::default() };
            let superseded = queue.make_room(free_bytes, limits);
            let steps: Vec<u64> = queue.waiting.iter().map(|finished| finished.step).collect();
            assert_eq!(steps, left, "{limits:?}");
            assert_eq!(superseded.len() + left.len(), 6);
        }
    }
}
