//! What happens on a node, on its way to the agent's loop.

use std::sync::Arc;

use hatchery_common::{
    availability::Away,
    device::Device,
    id::{AttemptId, CheckpointId},
    node::Inventory,
    session::ReplicaState,
    trainer::Calibration,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Interval,
};

use crate::{attempts::messages::AttemptUpdate, session::SessionEvent, trainer::tool::TrainerToolError};

/// Updates of one kind that may wait for the loop.
const UPDATES_MAX: usize = 1024;

/// A device whose speed was measured, and the result.
pub(crate) type Measurement = (Device, Result<Calibration, TrainerToolError>);

/// Where the parts of the agent tell the loop what happened.
pub(crate) struct Updates {
    pub(crate) session: mpsc::Sender<SessionEvent>,
    pub(crate) attempts: mpsc::Sender<(AttemptId, AttemptUpdate)>,
    pub(crate) replicas: mpsc::Sender<(CheckpointId, ReplicaState)>,
    pub(crate) inventory: mpsc::Sender<Inventory>,
    pub(crate) measured: mpsc::Sender<Measurement>,
    /// Notified whenever a trainer has written to its log.
    pub(crate) output_grew: Arc<Notify>,
}

/// Where the loop takes it in.
pub(crate) struct Inbox {
    session: mpsc::Receiver<SessionEvent>,
    attempts: mpsc::Receiver<(AttemptId, AttemptUpdate)>,
    replicas: mpsc::Receiver<(CheckpointId, ReplicaState)>,
    inventory: mpsc::Receiver<Inventory>,
    measured: mpsc::Receiver<Measurement>,
    output_grew: Arc<Notify>,
    away: watch::Receiver<Option<Away>>,
}

/// One thing that happened.
pub(crate) enum Event {
    Session(SessionEvent),
    Attempt(AttemptId, AttemptUpdate),
    Replica(CheckpointId, ReplicaState),
    Inventory(Box<Inventory>),
    Measured(Measurement),
    OutputGrew,
    Away(Option<Away>),
    Tick,
}

impl Inbox {
    /// An empty one. `away` says whether the devices are the owner's for now.
    pub(crate) fn open(away: watch::Receiver<Option<Away>>) -> (Updates, Self) {
        let (session_sender, session) = mpsc::channel(UPDATES_MAX);
        let (attempts_sender, attempts) = mpsc::channel(UPDATES_MAX);
        let (replicas_sender, replicas) = mpsc::channel(UPDATES_MAX);
        let (inventory_sender, inventory) = mpsc::channel(1);
        let (measured_sender, measured) = mpsc::channel(UPDATES_MAX);
        let output_grew = Arc::new(Notify::new());
        let updates = Updates {
            session: session_sender,
            attempts: attempts_sender,
            replicas: replicas_sender,
            inventory: inventory_sender,
            measured: measured_sender,
            output_grew: Arc::clone(&output_grew),
        };
        (updates, Self { session, attempts, replicas, inventory, measured, output_grew, away })
    }

    /// The next thing that happened. The session comes first: it carries the lease.
    pub(crate) async fn next(&mut self, tick: &mut Interval) -> Event {
        tokio::select! {
            biased;
            Some(event) = self.session.recv() => Event::Session(event),
            _ = tick.tick() => Event::Tick,
            Ok(()) = self.away.changed() => Event::Away(self.away()),
            Some((key, update)) = self.attempts.recv() => Event::Attempt(key, update),
            Some((id, state)) = self.replicas.recv() => Event::Replica(id, state),
            Some(inventory) = self.inventory.recv() => Event::Inventory(Box::new(inventory)),
            Some(measurement) = self.measured.recv() => Event::Measured(measurement),
            () = self.output_grew.notified() => Event::OutputGrew,
        }
    }

    /// Why the devices are the owner's for now.
    pub(crate) fn away(&mut self) -> Option<Away> {
        *self.away.borrow_and_update()
    }

    /// Waits until the session is closed; what else it still says is of no use any more.
    pub(crate) async fn session_closed(&mut self) {
        while let Some(event) = self.session.recv().await {
            if matches!(event, SessionEvent::Closed) {
                return;
            }
        }
    }
}
