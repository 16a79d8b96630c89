//! The checkpoints of this node as the agent's loop sees them.
//!
//! | file | its reason to change |
//! |---|---|
//! | `mod` | the table of replicas, and what of it the coordinator is told |
//! | `active` | which checkpoint answers for a job |
//! | `maker`, `self_test` | how a checkpoint becomes a replica that is known to answer rightly |
//! | `fetch`, `error` | how blobs and checkpoints come here |
//! | `repair` | how blobs that the coordinator has lost go back to it |
//! | `store` | how checkpoints lie on the disk |
//! | `corpora` | the datasets that trainers read |
//! | `models` | models kept in memory |

pub(crate) mod active;
pub(crate) mod corpora;
pub(crate) mod error;
pub(crate) mod fetch;
mod keyed_locks;
pub(crate) mod maker;
pub(crate) mod models;
mod repair;
pub(crate) mod self_test;
pub(crate) mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hatchery_common::{
    blob::BlobError,
    checkpoint::ReplicaForm,
    id::{CheckpointId, JobId},
    session::{Assignment, REPLICAS_MAX, ReplicaReport, ReplicaState},
    time::BootTime,
};
use hatchery_net::{RateLimit, blocking};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use self::{
    active::Active,
    maker::ReplicaMaker,
    store::{CheckpointStore, CheckpointStoreError},
};
use crate::{
    reconcile::{CheckpointPhase, LocalCheckpoint},
    session::backoff::Backoff,
};

/// First and longest wait before a failed replica is tried again.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_mins(1);
/// How often it is looked whether whoever wrote a blob that is to go has let go of it, and how many times.
const LET_GO_POLL: Duration = Duration::from_millis(20);
const LET_GO_POLLS_MAX: u32 = 500;

/// All checkpoints here, and those on their way.
pub(crate) struct Replicas {
    maker: ReplicaMaker,
    active: Active,
    updates: mpsc::Sender<(CheckpointId, ReplicaState)>,
    /// The checkpoints that the newest assignment wishes here.
    wished: watch::Sender<BTreeSet<CheckpointId>>,
    known: BTreeMap<CheckpointId, Known>,
    /// Those on their way out, each until its removal is over.
    dropping: Vec<(CheckpointId, AbortOnDropHandle<()>)>,
    _repair: AbortOnDropHandle<()>,
}

struct Known {
    phase: CheckpointPhase,
    state: Option<ReplicaState>,
    wished_at: BootTime,
    backoff: Backoff,
    /// How fast it may come; kept up to what the newest assignment says, also while it comes.
    limit: RateLimit,
    work: Option<AbortOnDropHandle<()>>,
}

impl Known {
    fn new(phase: CheckpointPhase, now: BootTime) -> Self {
        Self {
            phase,
            state: None,
            wished_at: now,
            backoff: Backoff::new(RETRY_FIRST, RETRY_LONGEST),
            limit: RateLimit::new(None),
            work: None,
        }
    }
}

impl Replicas {
    /// Starts with what is on the disk, and repairs what the coordinator has lost for as long as this is kept.
    pub(crate) fn start(
        maker: ReplicaMaker,
        active: Active,
        updates: mpsc::Sender<(CheckpointId, ReplicaState)>,
    ) -> Self {
        let (wished, newly_wished) = watch::channel(BTreeSet::new());
        let repair = AbortOnDropHandle::new(tokio::spawn(repair::run(maker.fetcher.clone(), newly_wished)));
        Self { maker, active, updates, wished, known: BTreeMap::new(), dropping: Vec::new(), _repair: repair }
    }

    /// Brings what is known up to what is on the disk: attempts put checkpoints there too. Then says what is here.
    pub(crate) fn observe(
        &mut self,
        assignment: Option<&Assignment>,
        in_use: &BTreeSet<CheckpointId>,
        now: BootTime,
    ) -> Vec<LocalCheckpoint> {
        let here: BTreeSet<CheckpointId> = self.maker.fetcher.store().ids().into_iter().collect();
        let begun: BTreeSet<CheckpointId> = self.maker.fetcher.store().begun().into_iter().collect();
        // Looked at after what is here: one whose removal was not over by now may still be in that list.
        let leaving: BTreeSet<CheckpointId> = self.dropping.iter().map(|(id, _)| *id).collect();
        self.dropping.retain(|(_, removal)| !removal.is_finished());
        for id in here.difference(&leaving) {
            self.known.entry(*id).or_insert_with(|| Known::new(CheckpointPhase::Held, now));
        }
        // What an attempt began to fetch and did not end: it goes like any other that nobody wishes.
        for id in begun.difference(&leaving) {
            let given_up = CheckpointPhase::Failed { retry_at: now };
            self.known.entry(*id).or_insert_with(|| Known::new(given_up, now));
        }
        let wished: BTreeSet<CheckpointId> =
            assignment.into_iter().flat_map(|assignment| assignment.checkpoints.iter().copied()).collect();
        let limits = assignment.map(|assignment| &assignment.bytes_per_sec_max);
        self.wished.send_if_modified(|before| {
            let changed = *before != wished;
            before.clone_from(&wished);
            changed
        });
        for (id, known) in &mut self.known {
            // An attempt that waits for it is not to wait for a rollout that may take its time.
            let is_limited = !in_use.contains(id);
            known.limit.set(limits.and_then(|limits| limits.get(id)).copied().filter(|_| is_limited));
            if wished.contains(id) || in_use.contains(id) {
                known.wished_at = now;
            }
            // Found damaged and removed by whoever needed it.
            if matches!(known.phase, CheckpointPhase::Ready | CheckpointPhase::Held) && !here.contains(id) {
                known.phase = CheckpointPhase::Failed { retry_at: now };
                known.state =
                    Some(ReplicaState::Failed { why: "it was damaged here; fetching it again".into() });
            }
        }
        let local = self.known.iter().map(|(id, known)| LocalCheckpoint {
            id: *id,
            phase: known.phase,
            is_here: here.contains(id),
            in_use: in_use.contains(id),
            wished_at: known.wished_at,
        });
        local.collect()
    }

    /// For each job what answers here.
    pub(crate) fn active(&self) -> BTreeMap<JobId, CheckpointId> {
        self.active.choices().clone()
    }

    /// Begins to let one answer for its job, or nothing.
    pub(crate) fn choose_active(&mut self, job: JobId, id: Option<CheckpointId>, now: BootTime) {
        self.active.choose(job, id, now);
    }

    /// Whether something has come to answer for its job, or does so no longer: that is worth a report at once.
    pub(crate) fn settle_active(&mut self, now: BootTime) -> bool {
        self.active.settle(now)
    }

    /// Whether so little room is left that what nobody wishes is to go at once.
    pub(crate) fn is_short_of_room(&self) -> bool {
        self.maker.fetcher.store().blobs().is_short_of_room()
    }

    /// Begins to fetch, no faster than said, and to try one.
    pub(crate) fn fetch(&mut self, id: CheckpointId, bytes_per_sec_max: Option<u64>, now: BootTime) {
        let known = self.known.entry(id).or_insert_with(|| Known::new(CheckpointPhase::Fetching, now));
        known.phase = CheckpointPhase::Fetching;
        known.limit.set(bytes_per_sec_max);
        let work = self.maker.clone().make(id, known.limit.clone(), self.updates.clone());
        known.work = Some(AbortOnDropHandle::new(tokio::spawn(work)));
    }

    pub(crate) fn drop_checkpoint(&mut self, id: CheckpointId) {
        if let Some(known) = self.known.remove(&id) {
            tracing::info!(checkpoint = %id.short(), "checkpoint dropped");
            let maker = self.maker.clone();
            let removal = tokio::spawn(async move {
                if let Some(work) = known.work {
                    work.abort();
                    // However it ended, it is at work no longer.
                    let _ended = work.await;
                }
                maker.models.forget(id);
                if let Err(error) = remove(maker.fetcher.store(), id).await {
                    tracing::warn!(checkpoint = %id.short(), %error, "cannot remove a checkpoint");
                }
            });
            self.dropping.push((id, AbortOnDropHandle::new(removal)));
        }
    }

    /// Takes what a worker says; true if that is worth a report at once.
    pub(crate) fn update(&mut self, id: CheckpointId, state: ReplicaState, now: BootTime) -> bool {
        let Some(known) = self.known.get_mut(&id).filter(|known| known.phase == CheckpointPhase::Fetching)
        else {
            return false;
        };
        match &state {
            ReplicaState::Fetching { .. } => {}
            ReplicaState::Ready { self_test_ms } => {
                tracing::info!(checkpoint = %id.short(), self_test_ms, "checkpoint ready");
                known.phase = CheckpointPhase::Ready;
                known.backoff.reset();
            }
            ReplicaState::Failed { why } => {
                tracing::warn!(checkpoint = %id.short(), why, "checkpoint not ready");
                // A little later than the drawn wait, which may be nothing.
                known.phase =
                    CheckpointPhase::Failed { retry_at: now + RETRY_FIRST + known.backoff.next_wait() };
            }
        }
        let settled = known.phase != CheckpointPhase::Fetching;
        if settled {
            known.work = None;
        }
        known.state = Some(state);
        settled
    }

    /// Whether everything known here is complete.
    pub(crate) fn all_ready(&self) -> bool {
        self.known.values().all(|known| known.phase == CheckpointPhase::Ready)
    }

    /// Gives up transfers that were begun for something that nobody wishes here any more. Only when nothing is under
    /// way.
    pub(crate) fn discard_unfinished(&self) {
        let store = self.maker.fetcher.store();
        if let Err(error) = store.discard_given_up() {
            tracing::warn!(%error, "cannot remove a partial checkpoint");
        }
        let blobs = store.blobs();
        for partial in blobs.partials() {
            if let Err(error) = blobs.discard_partial(partial.id) {
                tracing::warn!(%error, "cannot remove an unfinished transfer");
            }
        }
    }

    /// What the coordinator is told.
    pub(crate) fn reports(&self) -> Vec<ReplicaReport> {
        let store = self.maker.fetcher.store();
        let told = self.known.iter().filter_map(|(id, known)| {
            let (state, active) = (known.state.clone()?, self.active.is_active(*id));
            let serving_only = store.form(*id) == Some(ReplicaForm::ServingOnly);
            Some(ReplicaReport { checkpoint: *id, state, active, serving_only })
        });
        told.take(REPLICAS_MAX).collect()
    }
}

/// Removes a checkpoint and what is unfinished of it. A fetch that was just given up may have a writer for a moment longer.
async fn remove(store: &CheckpointStore, id: CheckpointId) -> Result<(), CheckpointStoreError> {
    let mut polls = 0;
    loop {
        let again = store.clone();
        match blocking(move || again.remove(id)).await {
            Err(CheckpointStoreError::Blob(BlobError::Busy { .. })) if polls < LET_GO_POLLS_MAX => {
                polls += 1;
                tokio::time::sleep(LET_GO_POLL).await;
            }
            other => return other,
        }
    }
}
