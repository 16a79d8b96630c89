//! What the rest of the coordinator has of the event loop: a place to put events, and the last state it has shown.

use std::{collections::BTreeMap, sync::Arc};

use hatchery_common::{
    device::Device,
    id::{JobId, NodeId},
    session::Report,
};
use hatchery_scheduler::{Cluster, InLine, Observed, Outcome, Rejected, Request, Wait};
use tokio::sync::{mpsc, oneshot, watch};

use crate::core::observations::Observations;

/// Something that happened. The event loop handles one after the other and nothing else.
#[derive(Debug)]
pub(crate) enum Event {
    /// Somebody wants something changed.
    Request {
        request: Box<Request>,
        reply: oneshot::Sender<Result<Outcome, RequestError>>,
    },
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

/// Which session of a node this is; a newer one has a higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionNumber(pub(crate) u64);

/// Why a request came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The disk is full; nothing was changed.
    #[error("nothing was changed, for the coordinator's disk is full: {0}; free some space and try again")]
    DiskFull(String),
    /// It could not be made durable.
    #[error("nothing was changed, for it could not be made durable: {0}")]
    NotDurable(String),
    /// The coordinator is stopping; whether the request came through is not known.
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
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The number of the last durable event; changes only with it.
    pub(crate) last_event: watch::Receiver<u64>,
}

impl LoopHandle {
    /// Wants something changed; the answer comes when it is durable.
    pub(crate) async fn request(&self, request: Request) -> Result<Outcome, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Request { request: Box::new(request), reply }).await?;
        answer.await.map_err(|_| RequestError::Stopping)?
    }

    /// Reports on behalf of a node; returns when the event loop has taken it.
    pub(crate) async fn report(
        &self,
        node: NodeId,
        session: SessionNumber,
        report: Report,
    ) -> Result<(), RequestError> {
        let (taken, is_taken) = oneshot::channel();
        self.send(Event::Report { node, session, report: Box::new(report), taken }).await?;
        is_taken.await.map_err(|_| RequestError::Stopping)
    }

    /// Puts in an event, waiting for room if there is none.
    pub(crate) async fn send(&self, event: Event) -> Result<(), RequestError> {
        self.events.send(event).await.map_err(|_| RequestError::Stopping)
    }

    /// The fleet as it was last shown.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }
}
