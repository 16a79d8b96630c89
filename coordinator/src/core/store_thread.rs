//! The store on a thread of its own: it waits for the disk, and nothing that waits for the disk runs on the event loop.

use hatchery_scheduler::{Cluster, Event};
use tokio::sync::{mpsc, oneshot};

use crate::store::{Store, StoreError, StoredEvent};

/// Calls waiting for the store. The event loop makes one at a time; the rest are readers of the history.
const CALLS_MAX: usize = 64;

/// Something that is wanted of the store.
pub struct StoreCall(Call);

enum Call {
    Load(oneshot::Sender<Result<Cluster, StoreError>>),
    Commit(Vec<Event>, oneshot::Sender<(Vec<Event>, Result<(), StoreError>)>),
    Events { after: u64, limit: usize, reply: oneshot::Sender<Result<Vec<StoredEvent>, StoreError>> },
    Close,
}

/// The store's thread has ended: the coordinator is stopping.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator is stopping")]
pub(crate) struct Stopped;

/// A way to call the store.
#[derive(Clone, Debug)]
pub(crate) struct StoreCalls {
    calls: mpsc::Sender<StoreCall>,
}

/// The calls that wait for the store.
pub struct StoreQueue {
    calls: mpsc::Receiver<StoreCall>,
}

/// A way to call a store, and what the store is to answer.
pub(crate) fn channel() -> (StoreCalls, StoreQueue) {
    let (sender, calls) = mpsc::channel(CALLS_MAX);
    (StoreCalls { calls: sender }, StoreQueue { calls })
}

/// Answers from `store` until [`StoreCalls::close`]. Blocks: it is for a thread of its own.
pub(crate) fn answer_all(mut store: impl Store, mut queue: StoreQueue) {
    while let Some(call) = queue.calls.blocking_recv() {
        if !call.answer(&mut store) {
            break;
        }
    }
}

impl StoreQueue {
    /// The next call; none when nobody can call any more.
    pub async fn next(&mut self) -> Option<StoreCall> {
        self.calls.recv().await
    }
}

impl StoreCall {
    /// Carries it out; a caller that has left gets no answer. Whether to go on.
    pub fn answer(self, store: &mut dyn Store) -> bool {
        match self.0 {
            Call::Load(reply) => drop(reply.send(store.load())),
            Call::Commit(events, reply) => {
                let result = store.commit(&events);
                let _ = reply.send((events, result));
            }
            Call::Events { after, limit, reply } => drop(reply.send(store.events(after, limit))),
            Call::Close => return false,
        }
        true
    }
}

impl StoreCalls {
    /// The whole durable state.
    pub(crate) async fn load(&self) -> Result<Result<Cluster, StoreError>, Stopped> {
        self.call(Call::Load).await
    }

    /// Makes `events` durable in one transaction, and gives them back.
    pub(crate) async fn commit(
        &self,
        events: Vec<Event>,
    ) -> Result<(Vec<Event>, Result<(), StoreError>), Stopped> {
        self.call(|reply| Call::Commit(events, reply)).await
    }

    /// At most `limit` events after number `after`, in order.
    pub(crate) async fn events(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Result<Vec<StoredEvent>, StoreError>, Stopped> {
        self.call(|reply| Call::Events { after, limit, reply }).await
    }

    /// Ends the thread, which closes the store. Calls made later, by whomever, are answered with [`Stopped`].
    pub(crate) async fn close(&self) {
        // If it cannot be sent, the thread has ended already.
        drop(self.calls.send(StoreCall(Call::Close)).await);
    }

    async fn call<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.calls.send(StoreCall(call(reply))).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}
