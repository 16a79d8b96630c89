//! The store on a thread of its own: it waits for the disk, and nothing that waits for the disk runs on the event loop.

use std::thread::{self, JoinHandle};

use hatchery_scheduler::{Change, Cluster};
use tokio::sync::{mpsc, oneshot};

use crate::store::{Event, Store, StoreError};

/// Calls waiting for the store. The event loop makes one at a time; the rest are readers of the history.
const CALLS_MAX: usize = 64;

enum Call {
    Load(oneshot::Sender<Result<Cluster, StoreError>>),
    Commit(Vec<Change>, oneshot::Sender<(Vec<Change>, Result<(), StoreError>)>),
    Events { after: u64, limit: usize, reply: oneshot::Sender<Result<Vec<Event>, StoreError>> },
    Close,
}

/// The store's thread has ended: the coordinator is stopping.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator is stopping")]
pub(crate) struct Stopped;

/// A way to call the store.
#[derive(Clone, Debug)]
pub(crate) struct StoreCalls {
    calls: mpsc::Sender<Call>,
}

/// Moves `store` to a thread of its own. Join it after [`StoreCalls::close`].
pub(crate) fn start(mut store: impl Store + 'static) -> std::io::Result<(StoreCalls, JoinHandle<()>)> {
    let (calls, mut waiting) = mpsc::channel(CALLS_MAX);
    let thread = thread::Builder::new().name("store".to_owned()).spawn(move || {
        while let Some(call) = waiting.blocking_recv() {
            if !answer(&mut store, call) {
                break;
            }
        }
    })?;
    Ok((StoreCalls { calls }, thread))
}

/// A caller that has left gets no answer; its call was carried out all the same. Whether to go on.
fn answer(store: &mut impl Store, call: Call) -> bool {
    match call {
        Call::Load(reply) => drop(reply.send(store.load())),
        Call::Commit(changes, reply) => {
            let result = store.commit(&changes);
            let _ = reply.send((changes, result));
        }
        Call::Events { after, limit, reply } => drop(reply.send(store.events(after, limit))),
        Call::Close => return false,
    }
    true
}

impl StoreCalls {
    /// The whole durable state.
    pub(crate) async fn load(&self) -> Result<Result<Cluster, StoreError>, Stopped> {
        self.call(Call::Load).await
    }

    /// Makes `changes` durable in one transaction, and gives them back.
    pub(crate) async fn commit(
        &self,
        changes: Vec<Change>,
    ) -> Result<(Vec<Change>, Result<(), StoreError>), Stopped> {
        self.call(|reply| Call::Commit(changes, reply)).await
    }

    /// At most `limit` events after number `after`, in order.
    pub(crate) async fn events(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Result<Vec<Event>, StoreError>, Stopped> {
        self.call(|reply| Call::Events { after, limit, reply }).await
    }

    /// Ends the thread, which closes the store. Calls made later, by whomever, are answered with [`Stopped`].
    pub(crate) async fn close(&self) {
        // If it cannot be sent, the thread has ended already.
        drop(self.calls.send(Call::Close).await);
    }

    async fn call<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        self.calls.send(call(reply)).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }
}
