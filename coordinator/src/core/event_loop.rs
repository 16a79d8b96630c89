//! The heart: one task that owns the cluster's state.
//!
//! ```text
//! events that arrived together
//!   -> take each: note what was heard; decide requests and try their changes on the draft
//!   -> plan on the draft
//!   -> commit all changes in one transaction
//!   -> show the draft, then answer
//! ```
//!
//! Nothing is shown, and nobody answered, before it is durable. If the commit fails, nothing of the batch happened.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hatchery_common::{
    device::Device,
    faults,
    id::{JobId, NodeId},
    session::{AttemptPhase, Report},
    time::{BootTime, Timestamp},
};
use hatchery_scheduler::{
    Cluster, InLine, Now, Observed, Outcome, Plan, Policy, Rejected, Request, Wait, decide, forget_rollouts,
    limits::ROLLOUTS_KEPT, plan, retire,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};

use crate::{
    core::{
        double_buffer::{DoubleBuffer, Evolve},
        handle::{Event, LoopHandle, RequestError, SessionNumber, Snapshot},
        observations::{Observations, Sighting},
        store_thread::{Stopped, StoreCalls},
    },
    store::StoreError,
};

/// Events waiting for the loop; who has more waits for room.
const EVENTS_MAX: usize = 1024;
/// Most events that share a transaction.
const BATCH_EVENTS_MAX: usize = 256;
/// The loop looks at the clock at least this often: timers stand still while a machine is suspended, leases do not.
const TICK_EVERY_MAX: Duration = Duration::from_secs(5);
/// And at most this often, when only time has passed.
const TICK_EVERY_MIN: Duration = Duration::from_millis(5);
/// If the loop has not come round for this part of a lease longer than it meant to, it was deaf for that time.
const DEAF_AFTER_LEASE_SHARE: u32 = 4;
/// If it slept for this part of a lease, it was deaf too; agents' margin is twice that.
const ASLEEP_LEASE_SHARE: u32 = 10;
/// The pause before planning again after a commit has failed.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// So many of the last events are read at the start, for the devices of jobs that have ended.
const HISTORY_EVENTS_MAX: u64 = 10_000;

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The store cannot be trusted any more.
    #[error("the coordinator stops because its store failed: {0}")]
    Store(#[from] StoreError),
    /// The store's thread is gone.
    #[error("the coordinator stops because its store thread ended")]
    StoreGone,
}

impl From<Stopped> for LoopError {
    fn from(_: Stopped) -> Self {
        Self::StoreGone
    }
}

type Reply = oneshot::Sender<Result<Outcome, RequestError>>;

/// The loop's own state.
pub(crate) struct EventLoop {
    events: mpsc::Receiver<Event>,
    store: StoreCalls,
    cluster: DoubleBuffer<Cluster>,
    observations: DoubleBuffer<Observations>,
    waits: Arc<BTreeMap<JobId, Wait>>,
    queues: Arc<BTreeMap<(NodeId, Device), Vec<InLine>>>,
    /// The newest session of each node.
    sessions: BTreeMap<NodeId, SessionNumber>,
    /// Answers that wait for the commit.
    replies: Vec<(Reply, Result<Outcome, Rejected>)>,
    tick_in: Duration,
    /// Nobody can be heard any more, so nothing is given away.
    is_stopping: bool,
    snapshots: watch::Sender<Arc<Snapshot>>,
    last_event: watch::Sender<u64>,
}

impl EventLoop {
    /// Loads the state. Leases run for `lease` from the last report heard, or from now.
    pub(crate) async fn load(
        store: StoreCalls,
        lease: Duration,
        policy: Policy,
    ) -> Result<(Self, LoopHandle), LoopError> {
        let cluster = store.load().await??;
        let observed = Observed { policy, ..Observed::new(BootTime::now(), lease) };
        let mut heard = Observations::new(observed);
        let history = cluster.last_event.saturating_sub(HISTORY_EVENTS_MAX);
        for event in store.events(history, HISTORY_EVENTS_MAX as usize).await?? {
            if let Some(sighting) = Sighting::of_change(&event.change) {
                heard.evolve(&sighting);
            }
        }
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (last_event, last_event_shown) = watch::channel(cluster.last_event);
        let (cluster, observations) = (DoubleBuffer::new(cluster), DoubleBuffer::new(heard));
        let (waits, queues) = (Arc::new(BTreeMap::new()), Arc::new(BTreeMap::new()));
        let snapshot = Snapshot {
            cluster: Arc::clone(cluster.shown()),
            observations: Arc::clone(observations.shown()),
            waits: Arc::clone(&waits),
            queues: Arc::clone(&queues),
        };
        let (snapshots, shown) = watch::channel(Arc::new(snapshot));
        let this = Self {
            events,
            store,
            cluster,
            observations,
            waits,
            queues,
            sessions: BTreeMap::new(),
            replies: Vec::new(),
            tick_in: Duration::ZERO,
            is_stopping: false,
            snapshots,
            last_event,
        };
        Ok((this, LoopHandle { events: sender, snapshots: shown, last_event: last_event_shown }))
    }

    /// Handles events until [`Event::Shutdown`], then those that are queued still.
    pub(crate) async fn run(mut self) -> Result<(), LoopError> {
        let mut batch = Vec::with_capacity(BATCH_EVENTS_MAX);
        let mut listened = (BootTime::now(), Instant::now());
        // Between loading and listening nobody could be heard: leases run from here.
        self.observations.step(Sighting::Deaf { until: listened.0 });
        loop {
            match timeout(self.tick_in, self.events.recv_many(&mut batch, BATCH_EVENTS_MAX)).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(_) => batch.push(Event::Tick),
            }
            let now = Now { wall: Timestamp::now(), boot: BootTime::now() };
            self.note_deafness(listened, now);
            listened = (now.boot, Instant::now());
            for event in batch.drain(..) {
                self.take(event, now);
            }
            self.settle(now).await?;
        }
    }

    /// While a commit hung or the machine slept, reports may have come in vain.
    fn note_deafness(&mut self, (listened, awake_at): (BootTime, Instant), now: Now) {
        let lease = self.observations.draft().observed.lease;
        let away = now.boot.since(listened);
        // A short sleep falls within the wait that was meant; the clock that stops in a sleep tells it.
        let asleep = away.saturating_sub(awake_at.elapsed());
        if away > self.tick_in + lease / DEAF_AFTER_LEASE_SHARE || asleep > lease / ASLEEP_LEASE_SHARE {
            tracing::warn!(
                away_ms = away.as_millis() as u64,
                "the coordinator was suspended; restarting all leases"
            );
            self.observations.step(Sighting::Deaf { until: now.boot });
        }
    }

    fn take(&mut self, event: Event, now: Now) {
        match event {
            Event::Request { request, reply } => {
                let result = self.try_request(*request, now);
                self.replies.push((reply, result));
            }
            Event::SessionOpened { node, session } => {
                if self.sessions.get(&node).is_none_or(|newest| *newest < session) {
                    self.sessions.insert(node, session);
                    self.observations.step(Sighting::Opened { node });
                }
            }
            Event::Report { node, session, report, taken } => {
                if self.sessions.get(&node) == Some(&session) {
                    self.take_endings(node, &report, now);
                    self.observations.step(Sighting::Heard { node, at: now.boot, report });
                    // A session that has closed meanwhile wants no receipt.
                    let _ = taken.send(());
                }
            }
            Event::SessionClosed { node, session } => {
                if self.sessions.get(&node) == Some(&session) {
                    self.sessions.remove(&node);
                    self.observations.step(Sighting::Closed { node });
                }
            }
            Event::Tick => {}
            Event::Stopping => self.is_stopping = true,
            Event::Shutdown => self.events.close(),
        }
    }

    /// Decides a request and tries its changes on the draft.
    fn try_request(&mut self, request: Request, now: Now) -> Result<Outcome, Rejected> {
        let decision = decide(self.cluster.draft(), request, now)?;
        decision.changes.into_iter().for_each(|change| self.cluster.step(change));
        Ok(decision.outcome)
    }

    /// An agent names an ended attempt in each report until its assignment drops it, so none of these is ever lost.
    fn take_endings(&mut self, node: NodeId, report: &Report, now: Now) {
        for attempt in &report.attempts {
            let AttemptPhase::Ended { ending, last_output } = &attempt.phase else { continue };
            let leased = self.cluster.draft().jobs.get(&attempt.job).is_some_and(|job| {
                job.epoch == attempt.epoch && job.lease.as_ref().is_some_and(|lease| lease.node == node)
            });
            if !leased {
                continue;
            }
            let request = Request::AttemptEnded {
                node,
                job: attempt.job,
                epoch: attempt.epoch,
                ending: ending.clone(),
                last_output: last_output.clone(),
            };
            if let Err(rejected) = self.try_request(request, now) {
                tracing::debug!(%node, job = %attempt.job, %rejected, "ignoring the end of an attempt");
            }
        }
    }

    /// Plans, commits, shows and answers.
    async fn settle(&mut self, now: Now) -> Result<(), LoopError> {
        let plan = if self.is_stopping {
            Plan::default()
        } else {
            plan(self.cluster.draft(), &self.observations.draft().observed, now)
        };
        plan.changes.into_iter().for_each(|change| self.cluster.step(change));
        // What is to be kept follows from the cluster alone: where nothing has changed, nothing is due. A rollout that goes
        // may be what kept a checkpoint.
        if self.cluster.has_steps() {
            for change in forget_rollouts(self.cluster.draft(), ROLLOUTS_KEPT, now.wall) {
                self.cluster.step(change);
            }
            for change in retire(self.cluster.draft(), now.wall) {
                self.cluster.step(change);
            }
        }
        self.tick_in = plan
            .wake_at
            .map_or(TICK_EVERY_MAX, |wake_at| wake_at.since(now.boot).clamp(TICK_EVERY_MIN, TICK_EVERY_MAX));

        let changes = self.cluster.take_steps();
        if !changes.is_empty() {
            faults::strikes("event_loop::before_commit");
            let (changes, result) = self.store.commit(changes).await?;
            faults::strikes("event_loop::after_commit");
            if let Err(error) = result {
                return self.give_up_batch(error).await;
            }
            for sighting in changes.iter().filter_map(Sighting::of_change) {
                self.observations.step(sighting);
            }
            self.cluster.accept(changes);
        }
        (self.waits, self.queues) = (Arc::new(plan.waits), Arc::new(plan.queues));
        self.observations.step(Sighting::Planned { lines: Arc::clone(&self.queues) });
        self.show();
        for (reply, result) in self.replies.drain(..) {
            faults::strikes("event_loop::before_reply");
            // A caller that has left does not want to know.
            let _ = reply.send(result.map_err(RequestError::Rejected));
        }
        Ok(())
    }

    /// Nothing of the batch happened: what was heard is shown, the cluster is what the store says it is.
    async fn give_up_batch(&mut self, error: StoreError) -> Result<(), LoopError> {
        tracing::error!(%error, requests = self.replies.len(), "a commit failed; none of it was published");
        let answer = match &error {
            StoreError::Full { .. } => RequestError::DiskFull(error.to_string()),
            _ => RequestError::NotDurable(error.to_string()),
        };
        // From here on only a new start can say what the disk holds.
        let is_fatal = matches!(error, StoreError::Io { .. } | StoreError::Corrupt { .. });
        if !is_fatal {
            self.cluster.reset(self.store.load().await??);
            self.tick_in = RETRY_EVERY;
            self.show();
        }
        for (reply, _) in self.replies.drain(..) {
            let _ = reply.send(Err(answer.clone()));
        }
        if is_fatal { Err(error.into()) } else { Ok(()) }
    }

    fn show(&mut self) {
        let sightings = self.observations.take_steps();
        self.observations.accept(sightings);
        let snapshot = Snapshot {
            cluster: Arc::clone(self.cluster.shown()),
            observations: Arc::clone(self.observations.shown()),
            waits: Arc::clone(&self.waits),
            queues: Arc::clone(&self.queues),
        };
        let last_event = snapshot.cluster.last_event;
        self.snapshots.send_replace(Arc::new(snapshot));
        self.last_event.send_if_modified(|shown| std::mem::replace(shown, last_event) != last_event);
    }
}

#[cfg(test)]
mod tests;
