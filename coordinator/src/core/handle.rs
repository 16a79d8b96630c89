//! What the rest of the coordinator has of the event loop: a place to put inputs, and the last state it has shown.

use std::{collections::BTreeMap, sync::Arc};

use hatchery_common::{
    device::Device,
    id::{JobId, NodeId},
    session::Report,
};
use hatchery_scheduler::{
    Cluster, Command, Decision, Event, InLine, Now, Observed, Rejected, Violation, Wait,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::core::observations::Observations;

/// What the event loop takes in, one after the other.
pub(crate) enum Input {
    /// Somebody wants something changed.
    Command(Ask),
    /// A node's session is open; it ends the one before.
    SessionOpened {
        node: NodeId,
        session: SessionNumber,
    },
    /// A node reported.
    Report {
        node: NodeId,
        session: SessionNumber,
        report: Box<Report>,
        taken: oneshot::Sender<()>,
    },
    /// A node's session is closed.
    SessionClosed {
        node: NodeId,
        session: SessionNumber,
    },
    Tick,
    /// No more is heard from here on: answer what is asked, and give nothing away.
    Stopping,
    /// Finish what is queued, then end.
    Shutdown,
}

/// A command with the way back to its caller: gives the events that it comes to, and how to answer.
pub(crate) type Ask = Box<dyn FnOnce(&Cluster, Now) -> (Vec<Event>, Answer) + Send>;

/// Answers a command's caller, once its events are committed or are not to be.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), CommandError>) + Send>;

/// Where a command's outcome comes.
type Outcome<C> = oneshot::Receiver<Result<<C as Command>::Outcome, CommandError>>;

/// Which session of a node this is; a newer one has a higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionNumber(pub(crate) u64);

/// Why a command came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The disk is full; nothing was changed.
    #[error("nothing was changed, for the coordinator's disk is full: {0}; free some space and try again")]
    DiskFull(String),
    /// It could not be made durable.
    #[error("nothing was changed, for it could not be made durable: {0}")]
    NotDurable(String),
    /// It would have broken an invariant: a fault of the program.
    #[error(
        "nothing was changed, for it would break an invariant: {0}; this is a fault of the program, report it"
    )]
    InvariantBroken(Violation),
    /// The coordinator is stopping; whether the command came through is not known.
    #[error("the coordinator is stopping; try again when it is back")]
    Stopping,
}

/// The fleet at one instant. All of it is durable but what was observed.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) observations: Arc<Observations>,
    /// Why each waiting job waits.
    pub(crate) waits: Arc<BTreeMap<JobId, Wait>>,
    /// The jobs that wait for each device.
    pub(crate) queues: Arc<BTreeMap<(NodeId, Device), Vec<InLine>>>,
    /// Batches and plans that were refused since the start because they would have broken an invariant.
    pub(crate) refused: Arc<Refused>,
}

/// Batches and plans that would have broken an invariant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused {
    pub(crate) count: u64,
    pub(crate) last: Option<Violation>,
}

impl Snapshot {
    /// What planning goes by.
    pub(crate) fn observed(&self) -> &Observed {
        &self.observations.observed
    }
}

/// A way to reach the event loop.
#[derive(Clone, Debug)]
pub(crate) struct LoopHandle {
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The number of the last durable event; changes only with it.
    pub(crate) last_event: watch::Receiver<u64>,
}

impl LoopHandle {
    /// Wants something changed; the outcome comes when it is durable.
    pub(crate) async fn command<C>(&self, command: C) -> Result<C::Outcome, CommandError>
    where
        C: Command + Send + 'static,
        C::Outcome: Send + 'static,
    {
        self.put(command).await?.await.map_err(|_| CommandError::Stopping)?
    }

    /// Puts a command in; its outcome comes over what is returned.
    pub(crate) async fn put<C>(&self, command: C) -> Result<Outcome<C>, CommandError>
    where
        C: Command + Send + 'static,
        C::Outcome: Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let ask: Ask = Box::new(move |cluster, now| {
            let (events, outcome) = match command.decide(cluster, now) {
                Ok(Decision { events, outcome }) => (events, Ok(outcome)),
                Err(rejected) => (Vec::new(), Err(CommandError::Rejected(rejected))),
            };
            // A caller that has left does not want to know.
            (events, Box::new(move |committed| drop(reply.send(committed.and(outcome)))))
        });
        self.send(Input::Command(ask)).await?;
        Ok(answer)
    }

    /// Reports on behalf of a node; returns when the event loop has taken it.
    pub(crate) async fn report(
        &self,
        node: NodeId,
        session: SessionNumber,
        report: Report,
    ) -> Result<(), CommandError> {
        let (taken, is_taken) = oneshot::channel();
        self.send(Input::Report { node, session, report: Box::new(report), taken }).await?;
        is_taken.await.map_err(|_| CommandError::Stopping)
    }

    /// Puts an input in, waiting for room if there is none.
    pub(crate) async fn send(&self, input: Input) -> Result<(), CommandError> {
        self.inputs.send(input).await.map_err(|_| CommandError::Stopping)
    }

    /// The fleet as it was last shown.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }
}
