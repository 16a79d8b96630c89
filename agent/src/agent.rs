//! The agent's loop: one owner of all that the node knows, one thing at a time.
//!
//! Whatever happens, the loop first looks at the lease, and then compares what is wished with what is there.

use std::{collections::BTreeSet, future::Future, pin::pin, time::Duration};

use hatchery_common::{
    availability::Away,
    device::{Device, DeviceKind},
    faults,
    node::{Inventory, NodeMetrics},
    session::{AgentMessage, Assignment, CoordinatorMessage, Report},
    time::BootTime,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    attempts::Attempts,
    inbox::{Event, Inbox},
    inference::Inference,
    lease::Lease,
    machine::{calibration::Calibrator, gpu_guard::Gpus},
    peers::Peers,
    reconcile::{Observed, Step, Wish, reconcile},
    replicas::Replicas,
    session::{OUTBOX_MAX, SessionEvent},
    settings::AgentSettings,
};

/// How often the lease is looked at when nothing else happens.
const TICK: Duration = Duration::from_millis(100);
/// How often at most a change is reported before the next report is due.
const REPORT_SPACING: Duration = Duration::from_millis(100);
/// Places in the outbox that output leaves to everything else.
const OUTBOX_ROOM_MIN: usize = OUTBOX_MAX - 4;
/// How long trainers and deliveries may take when the agent ends.
pub(crate) const LEAVE_WITHIN: Duration = Duration::from_secs(20);
/// How much of that is kept for the end of trainers that have to be killed.
const KILLED_WITHIN: Duration = Duration::from_secs(3);
/// How long the goodbye may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// A session that stands.
struct Session {
    outbox: mpsc::Sender<AgentMessage>,
    report_every: Duration,
    sequence: u64,
    reported_at: Option<Instant>,
    /// Whether something has happened that is worth a report at once.
    news: bool,
    /// Whether an assignment has come in it.
    assigned: bool,
}

/// The parts of the node that the loop directs, and what it knows itself.
pub(crate) struct Agent {
    pub(crate) settings: AgentSettings,
    pub(crate) attempts: Attempts,
    pub(crate) replicas: Replicas,
    pub(crate) inference: Inference,
    pub(crate) calibrator: Calibrator,
    pub(crate) inventory: watch::Sender<Inventory>,
    /// The newest figures of the machine.
    pub(crate) metrics: watch::Receiver<NodeMetrics>,
    /// The exchange of blobs with other nodes, if there is one.
    pub(crate) peers: Option<Peers>,
    /// Which GPUs may be used for answers.
    pub(crate) gpus: Gpus,
    /// Cancelled before the goodbye.
    pub(crate) farewell: CancellationToken,
    pub(crate) state: State,
}

/// What the loop knows: nothing, at first.
#[derive(Default)]
pub(crate) struct State {
    lease: Lease,
    assignment: Option<Assignment>,
    session: Option<Session>,
    leaving: bool,
    /// Why the devices are the owner's for now.
    away: Option<Away>,
}

impl Agent {
    /// Runs until `shutdown`, then leaves in good order.
    pub(crate) async fn run(mut self, mut inbox: Inbox, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut tick = interval(TICK);
        let away = inbox.away();
        if away.is_some() {
            self.on_away(away);
        }
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = inbox.next(&mut tick) => self.turn(event),
                () = &mut shutdown => break,
            }
        }
        self.state.leaving = true;
        tracing::info!("shutting down: trainers write their last checkpoints");
        let settled = async {
            self.act();
            while !self.attempts.all_over() {
                let event = inbox.next(&mut tick).await;
                self.turn(event);
            }
        };
        if timeout(LEAVE_WITHIN.saturating_sub(KILLED_WITHIN), settled).await.is_err() {
            tracing::warn!("not all checkpoints could be delivered in time; the rest stay on this machine");
            // The goodbye lets others take over, so nothing may run here any more when it is said (invariant I6).
            self.attempts.kill_all();
            let gone = async {
                while self.attempts.any_active() {
                    let event = inbox.next(&mut tick).await;
                    self.turn(event);
                }
            };
            if timeout(KILLED_WITHIN, gone).await.is_err() {
                tracing::error!(
                    "a trainer does not exit although it was killed; the coordinator ends it when its \
                     lease expires"
                );
                return;
            }
        }
        self.say_goodbye(&mut inbox).await;
    }

    /// One turn of the loop.
    fn turn(&mut self, event: Event) {
        // A machine that was suspended ends what it may no longer run before it hears anything.
        self.act();
        self.handle(event);
        self.act();
        self.speak();
    }

    fn handle(&mut self, event: Event) {
        let now = BootTime::now();
        let news = match event {
            Event::Session(event) => self.on_session(event),
            Event::Attempt(key, update) => self.attempts.update(key, update),
            Event::Replica(id, state) => self.replicas.update(id, state, now),
            Event::Inventory(inventory) => {
                self.on_inventory(*inventory);
                false
            }
            Event::Measured(measurement) => {
                let mut inventory = self.inventory.borrow().clone();
                if self.calibrator.measured(measurement, &mut inventory) {
                    self.on_inventory(inventory);
                }
                false
            }
            Event::Away(away) => self.on_away(away),
            Event::OutputGrew | Event::Tick => false,
        };
        if let Some(session) = &mut self.state.session {
            session.news |= news;
        }
    }

    fn on_session(&mut self, event: SessionEvent) -> bool {
        match event {
            SessionEvent::Opened { outbox, name, report_every } => {
                tracing::info!(%name, "connected to the coordinator");
                self.state.lease.session_began();
                self.attempts.session_began();
                self.state.session = Some(Session {
                    outbox,
                    report_every,
                    sequence: 0,
                    reported_at: None,
                    news: true,
                    assigned: false,
                });
            }
            SessionEvent::Message(message) => self.on_message(message),
            SessionEvent::Closed => {
                self.state.session = None;
                self.inference.cancel_all();
            }
            SessionEvent::Down { dialled } => {
                let outage_max = Duration::from_secs(self.settings.outage_secs_max);
                if self.state.lease.coordinator_was_down(dialled, outage_max) {
                    self.attempts.extend(self.state.lease.stop_by());
                }
            }
        }
        false
    }

    fn on_message(&mut self, message: CoordinatorMessage) {
        let Some(session) = &mut self.state.session else { return };
        match message {
            CoordinatorMessage::Welcome { report_every, .. } => session.report_every = report_every,
            CoordinatorMessage::Assignment(assignment) => {
                session.assigned = true;
                session.news = true;
                self.state.lease.set_length(assignment.lease);
                self.state.assignment = Some(assignment);
                self.attempts.extend(self.state.lease.stop_by());
            }
            CoordinatorMessage::ReportReceived { sequence } => {
                self.attempts.report_received(sequence);
                if self.state.lease.report_received(sequence) {
                    self.attempts.extend(self.state.lease.stop_by());
                }
            }
            CoordinatorMessage::Generation { request, order } => {
                self.inference.answer(request, order, session.outbox.clone());
            }
            CoordinatorMessage::GenerationCancelled { request } => self.inference.cancel(request),
            // For the exchange of blobs, which a node may be set up to do without.
            CoordinatorMessage::FetchPlan(_) | CoordinatorMessage::Revoked(_) => {}
        }
    }

    fn on_away(&mut self, away: Option<Away>) -> bool {
        if let Some(away) = away {
            tracing::info!("away: {away}; trainers write a checkpoint and stop");
            self.calibrator.stop();
        } else {
            tracing::info!("back: trainers may run here again");
        }
        self.state.away = away;
        true
    }

    fn on_inventory(&mut self, inventory: Inventory) {
        self.inventory.send_replace(inventory.clone());
        if let Some(session) = &self.state.session {
            // Without room now, the next session's first message says it.
            let _full = session.outbox.try_send(AgentMessage::Inventory(Box::new(inventory)));
        }
    }

    /// Compares what is wished with what is there, and takes the steps between them.
    fn act(&mut self) {
        let now = BootTime::now();
        if self.replicas.settle_active(now)
            && let Some(session) = &mut self.state.session
        {
            session.news = true;
        }
        let assignment = self.state.assignment.as_ref();
        let observed = Observed {
            attempts: self.attempts.observe(),
            checkpoints: self.replicas.observe(assignment, &self.attempts.in_use(), now),
            active: self.replicas.active(),
            is_short_of_room: self.replicas.is_short_of_room(),
        };
        let fresh = self.state.session.as_ref().is_some_and(|session| session.assigned);
        let wish = Wish { assignment, fresh, leaving: self.state.leaving, away: self.state.away.is_some() };
        let steps = reconcile(wish, &observed, self.state.lease.state(now), now);
        let at_rest = fresh && steps.is_empty() && !self.attempts.any_active() && self.replicas.all_ready();
        for step in steps {
            match step {
                Step::StartAttempt(assigned) => {
                    self.calibrator.stop();
                    // One that is to stop only delivers what it has.
                    if !assigned.stop {
                        self.gpus.withdraw(assigned.device);
                    }
                    self.attempts.start(*assigned);
                }
                Step::RefuseAttempt(unreadable) => self.attempts.refuse(unreadable),
                Step::StopAttempt(key, reason) => self.attempts.stop(key, reason, now),
                Step::OfferLeftovers(key) => self.attempts.offer_leftovers(key),
                Step::KillAttempt(key) => self.attempts.kill(key),
                // Tests have it cling to what it was told to forget: the coordinator must not rely on it.
                Step::ForgetAttempt(_) if faults::strikes("agent::forgets_nothing") => {}
                Step::ForgetAttempt(key) => self.attempts.forget(key),
                Step::FetchCheckpoint(id) => {
                    let assignment = self.state.assignment.as_ref();
                    let rate = assignment.and_then(|one| one.bytes_per_sec_max.get(&id).copied());
                    self.replicas.fetch(id, rate, now);
                }
                Step::Activate(job, id) => self.replicas.choose_active(job, Some(id), now),
                Step::Deactivate(job) => self.replicas.choose_active(job, None, now),
                Step::DropCheckpoint(id) => self.replicas.drop_checkpoint(id),
            }
        }
        if at_rest {
            self.replicas.discard_unfinished();
        }
        if let Some(peers) = &self.peers {
            peers.set_training(self.attempts.any_active());
        }
        let idle = !self.state.leaving && self.state.away.is_none() && !self.attempts.any_active();
        if self.settings.calibrate && fresh && idle {
            self.calibrator.work(&self.inventory.borrow());
        }
        self.gpus.offer(self.free_gpus());
    }

    /// The GPUs that may answer: nothing trains there, nor is measured, and the machine's owner is away.
    fn free_gpus(&self) -> BTreeSet<Device> {
        if !self.settings.answer_on_gpu || self.state.leaving || self.state.away.is_some() {
            return BTreeSet::new();
        }
        let inventory = self.inventory.borrow();
        let devices = inventory.devices.iter().map(|device| device.device);
        let mut free: BTreeSet<Device> = devices.filter(|device| device.kind == DeviceKind::Cuda).collect();
        self.attempts.devices().chain(self.calibrator.device()).for_each(|device| {
            free.remove(&device);
        });
        free
    }

    /// Sends what is due: a report, and new output.
    fn speak(&mut self) {
        let Some(session) = &mut self.state.session else { return };
        self.attempts.send_output(&session.outbox, OUTBOX_ROOM_MIN);
        let wait = if session.news { REPORT_SPACING } else { session.report_every };
        if session.reported_at.is_some_and(|reported_at| reported_at.elapsed() < wait) {
            return;
        }
        session.sequence += 1;
        let report = Report {
            sequence: session.sequence,
            attempts: self.attempts.reports(),
            replicas: self.replicas.reports(),
            metrics: *self.metrics.borrow(),
            leaving: self.state.leaving,
            away: self.state.away,
        };
        // The lease runs from before the sending.
        let now = BootTime::now();
        // Without room the network is behind; a later report says the same and more.
        if session.outbox.try_send(AgentMessage::Report(report)).is_ok() {
            self.state.lease.report_sent(session.sequence, now);
            self.attempts.report_sent(session.sequence);
            session.news = false;
            session.reported_at = Some(Instant::now());
        }
    }

    /// The last words: how everything ended, and that nothing more will come.
    async fn say_goodbye(mut self, inbox: &mut Inbox) {
        if let Some(session) = &mut self.state.session {
            session.reported_at = None;
        }
        self.speak();
        self.farewell.cancel();
        let Some(session) = self.state.session.take() else { return };
        let said = async {
            // A full outbox is emptied by the session, or closed with it.
            let _closed = session.outbox.send(AgentMessage::Goodbye).await;
            drop(session);
            inbox.session_closed().await;
        };
        if timeout(GOODBYE_WITHIN, said).await.is_err() {
            tracing::warn!("the coordinator did not acknowledge the shutdown; leases will expire");
        }
    }
}
