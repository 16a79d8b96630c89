//! The heart: one task that owns the cluster's state.
//!
//! ```text
//! inputs that arrived together
//!   -> take each: note what was heard; decide commands and try their events on the draft
//!   -> plan on the draft
//!   -> check that no invariant is broken
//!   -> commit all events in one transaction
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
    Cluster, Command as _, EndAttempt, InLine, Now, Observed, Plan, Policy, Violation, Wait, What,
    check_batch, check_plan, forget_rollouts, limits::ROLLOUTS_KEPT, plan, retire,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

use crate::{
    core::{
        double_buffer::{DoubleBuffer, Evolve},
        handle::{Answer, CommandError, Input, LoopHandle, Refused, SessionNumber, Snapshot},
        observations::{Observations, Sighting},
        store_thread::{Stopped, StoreCalls},
    },
    store::StoreError,
};

/// Inputs waiting for the loop; who has more waits for room.
const INPUTS_MAX: usize = 1024;
/// Most inputs that share a transaction.
const BATCH_MAX: usize = 256;
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

/// The loop's own state.
pub(crate) struct EventLoop {
    inputs: mpsc::Receiver<Input>,
    store: StoreCalls,
    cluster: DoubleBuffer<Cluster>,
    observations: DoubleBuffer<Observations>,
    waits: Arc<BTreeMap<JobId, Wait>>,
    queues: Arc<BTreeMap<(NodeId, Device), Vec<InLine>>>,
    refused: Arc<Refused>,
    /// The newest session of each node.
    sessions: BTreeMap<NodeId, SessionNumber>,
    /// Answers that wait for the commit.
    answers: Vec<Answer>,
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
            if let Some(sighting) = Sighting::of_event(&event.event) {
                heard.evolve(&sighting);
            }
        }
        let (sender, inputs) = mpsc::channel(INPUTS_MAX);
        let (last_event, last_event_shown) = watch::channel(cluster.last_event);
        let (cluster, observations) = (DoubleBuffer::new(cluster), DoubleBuffer::new(heard));
        let (waits, queues) = (Arc::new(BTreeMap::new()), Arc::new(BTreeMap::new()));
        let snapshot = Snapshot {
            cluster: Arc::clone(cluster.shown()),
            observations: Arc::clone(observations.shown()),
            waits: Arc::clone(&waits),
            queues: Arc::clone(&queues),
            refused: Arc::default(),
        };
        let (snapshots, shown) = watch::channel(Arc::new(snapshot));
        let this = Self {
            inputs,
            store,
            cluster,
            observations,
            waits,
            queues,
            refused: Arc::default(),
            sessions: BTreeMap::new(),
            answers: Vec::new(),
            tick_in: Duration::ZERO,
            is_stopping: false,
            snapshots,
            last_event,
        };
        Ok((this, LoopHandle { inputs: sender, snapshots: shown, last_event: last_event_shown }))
    }

    /// Takes inputs until [`Input::Shutdown`], then those that are queued still.
    pub(crate) async fn run(mut self) -> Result<(), LoopError> {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut listened = (BootTime::now(), Instant::now());
        // Between loading and listening nobody could be heard: leases run from here.
        self.observations.step(Sighting::Deaf { until: listened.0 });
        loop {
            match timeout(self.tick_in, self.inputs.recv_many(&mut batch, BATCH_MAX)).await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(_) => batch.push(Input::Tick),
            }
            let now = Now { wall: Timestamp::now(), boot: BootTime::now() };
            self.note_deafness(listened, now);
            listened = (now.boot, Instant::now());
            for input in batch.drain(..) {
                self.take(input, now);
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

    fn take(&mut self, input: Input, now: Now) {
        match input {
            Input::Command(ask) => {
                let (events, answer) = ask(self.cluster.draft(), now);
                for event in events {
                    self.cluster.step(event);
                }
                self.answers.push(answer);
            }
            Input::SessionOpened { node, session } => {
                if self.sessions.get(&node).is_none_or(|newest| *newest < session) {
                    self.sessions.insert(node, session);
                    self.observations.step(Sighting::Opened { node });
                }
            }
            Input::Report { node, session, report, taken } => {
                if self.sessions.get(&node) == Some(&session) {
                    self.take_endings(node, &report, now);
                    self.observations.step(Sighting::Heard { node, at: now.boot, report });
                    // A session that has closed meanwhile wants no receipt.
                    let _ = taken.send(());
                }
            }
            Input::SessionClosed { node, session } => {
                if self.sessions.get(&node) == Some(&session) {
                    self.sessions.remove(&node);
                    self.observations.step(Sighting::Closed { node });
                }
            }
            Input::Tick => {}
            Input::Stopping => self.is_stopping = true,
            Input::Shutdown => self.inputs.close(),
        }
    }

    /// An agent names an ended attempt in each report until its assignment drops it, so none of these is ever lost.
    fn take_endings(&mut self, node: NodeId, report: &Report, now: Now) {
        for attempt in &report.attempts {
            let AttemptPhase::Ended { ending, last_output } = &attempt.phase else { continue };
            let leased = self.cluster.draft().jobs.get(&attempt.id.job).is_some_and(|job| {
                job.attempt() == attempt.id && job.lease.as_ref().is_some_and(|lease| lease.node == node)
            });
            if !leased {
                continue;
            }
            let end = EndAttempt {
                node,
                job: attempt.id.job,
                epoch: attempt.id.epoch,
                ending: ending.clone(),
                last_output: last_output.clone(),
            };
            match end.decide(self.cluster.draft(), now) {
                Ok(decision) => decision.events.into_iter().for_each(|event| self.cluster.step(event)),
                Err(rejected) => {
                    tracing::debug!(%node, job = %attempt.id.job, %rejected, "ignoring the end of an attempt");
                }
            }
        }
    }

    /// Plans, commits, shows and answers.
    async fn settle(&mut self, now: Now) -> Result<(), LoopError> {
        let plan = if self.is_stopping { Plan::default() } else { self.plan(now) };
        plan.events.into_iter().for_each(|event| self.cluster.step(event));
        // What is to be kept follows from the cluster alone: where nothing has changed, nothing is due. A rollout that goes
        // may be what kept a checkpoint.
        if self.cluster.has_steps() {
            for event in forget_rollouts(self.cluster.draft(), ROLLOUTS_KEPT, now.wall) {
                self.cluster.step(event);
            }
            for event in retire(self.cluster.draft(), now.wall) {
                self.cluster.step(event);
            }
        }
        self.tick_in = plan
            .wake_at
            .map_or(TICK_EVERY_MAX, |wake_at| wake_at.since(now.boot).clamp(TICK_EVERY_MIN, TICK_EVERY_MAX));

        if let Err(violation) = check_batch(self.cluster.shown(), self.cluster.draft(), self.cluster.steps())
        {
            self.refuse_batch(violation);
            return Ok(());
        }
        let events = self.cluster.take_steps();
        if !events.is_empty() {
            faults::strikes("event_loop::before_commit");
            let (events, result) = self.store.commit(events).await?;
            faults::strikes("event_loop::after_commit");
            if let Err(error) = result {
                return self.give_up_batch(error).await;
            }
            for sighting in events.iter().filter_map(Sighting::of_event) {
                self.observations.step(sighting);
            }
            self.cluster.accept(events);
        }
        (self.waits, self.queues) = (Arc::new(plan.waits), Arc::new(plan.queues));
        self.observations.step(Sighting::Planned { lines: Arc::clone(&self.queues) });
        self.show();
        for answer in self.answers.drain(..) {
            faults::strikes("event_loop::before_reply");
            answer(Ok(()));
        }
        Ok(())
    }

    /// Plans. A plan that breaks an invariant is refused whole: who waits, waits on.
    fn plan(&mut self, now: Now) -> Plan {
        let mut made = plan(self.cluster.draft(), &self.observations.draft().observed, now);
        if faults::strikes("mutant::granted_epoch") {
            for event in &mut made.events {
                if let What::LeaseGranted { epoch, .. } = &mut event.what {
                    *epoch = epoch.next();
                }
            }
        }
        match check_plan(self.cluster.draft(), &made) {
            Ok(()) => made,
            Err(violation) => {
                self.note_violation("plan", violation);
                let (waits, queues) = (self.waits.as_ref().clone(), self.queues.as_ref().clone());
                Plan { events: Vec::new(), waits, queues, wake_at: Some(now.boot + RETRY_EVERY) }
            }
        }
    }

    /// Nothing of the batch happened, because it would have broken an invariant.
    fn refuse_batch(&mut self, violation: Violation) {
        self.cluster.discard();
        self.tick_in = RETRY_EVERY;
        for answer in self.answers.drain(..) {
            answer(Err(CommandError::InvariantBroken(violation.clone())));
        }
        self.note_violation("batch", violation);
        self.show();
    }

    fn note_violation(&mut self, refused: &'static str, violation: Violation) {
        tracing::error!(%violation, refused, "an invariant would have been broken; nothing of it is committed");
        let count = self.refused.count + 1;
        self.refused = Arc::new(Refused { count, last: Some(violation) });
    }

    /// Nothing of the batch happened: what was heard is shown, the cluster is what the store says it is.
    async fn give_up_batch(&mut self, error: StoreError) -> Result<(), LoopError> {
        tracing::error!(%error, commands = self.answers.len(), "a commit failed; none of it was published");
        let why = match &error {
            StoreError::Full { .. } => CommandError::DiskFull(error.to_string()),
            _ => CommandError::NotDurable(error.to_string()),
        };
        // From here on only a new start can say what the disk holds.
        let is_fatal = matches!(error, StoreError::Io { .. } | StoreError::Corrupt { .. });
        if !is_fatal {
            self.cluster.reset(self.store.load().await??);
            self.tick_in = RETRY_EVERY;
            self.show();
        }
        for answer in self.answers.drain(..) {
            answer(Err(why.clone()));
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
            refused: Arc::clone(&self.refused),
        };
        let last_event = snapshot.cluster.last_event;
        self.snapshots.send_replace(Arc::new(snapshot));
        self.last_event.send_if_modified(|shown| std::mem::replace(shown, last_event) != last_event);
    }
}

#[cfg(test)]
mod tests;
