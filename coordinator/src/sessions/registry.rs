//! The sessions that are open, and the way to send over each.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hatchery_common::{id::NodeId, session::CoordinatorMessage};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::core::handle::SessionNumber;

/// Orders waiting to go out over one session.
const ORDERS_MAX: usize = 64;

/// The sessions that are open, at most one for each node.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    open: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    last_number: u64,
    open: BTreeMap<NodeId, Open>,
}

#[derive(Debug)]
struct Open {
    outbox: Outbox,
    superseded: CancellationToken,
}

/// A way to send over an open session.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    pub(crate) session: SessionNumber,
    pub(crate) messages: mpsc::Sender<CoordinatorMessage>,
}

impl Sessions {
    /// Opens a session and ends the node's older one.
    pub(super) fn open(
        &self,
        node: NodeId,
    ) -> (SessionNumber, mpsc::Receiver<CoordinatorMessage>, CancellationToken) {
        let mut registry = self.lock();
        registry.last_number += 1;
        let session = SessionNumber(registry.last_number);
        let (messages, orders) = mpsc::channel(ORDERS_MAX);
        let superseded = CancellationToken::new();
        let open = Open { outbox: Outbox { session, messages }, superseded: superseded.clone() };
        if let Some(older) = registry.open.insert(node, open) {
            older.superseded.cancel();
        }
        (session, orders, superseded)
    }

    pub(super) fn close(&self, node: NodeId, session: SessionNumber) {
        let mut registry = self.lock();
        if registry.open.get(&node).is_some_and(|open| open.outbox.session == session) {
            registry.open.remove(&node);
        }
    }

    /// A way to send to `node`, if its session is open.
    pub(crate) fn outbox(&self, node: NodeId) -> Option<Outbox> {
        self.lock().open.get(&node).map(|open| open.outbox.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // Nothing panics while it is held; were it so, the map is whole all the same.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
