//! What a node fetches from others: all blobs at once, by the plans that come.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use hatchery_common::{
    blob::BlobStore,
    id::BlobId,
    swarm::{FetchPlan, Trouble, WantedBlob},
    tls::Credentials,
};
use tokio::sync::{Notify, mpsc, watch};

use super::{FetchError, Shares, fetch::Fetch, pool::Pool};
use crate::{RateLimit, transfer::BlobClient, transport::Network};

/// What a node fetches from others. Clones share it.
#[derive(Clone, Debug)]
pub struct Exchange(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: BlobStore,
    shares: Shares,
    pool: Arc<Pool>,
    fetching: Mutex<HashMap<BlobId, Fetching>>,
    received_bytes: Arc<AtomicU64>,
    last_fetch: AtomicU64,
    /// Told whenever what is fetched has changed.
    changed: Arc<Notify>,
    troubles: mpsc::Sender<(BlobId, Trouble)>,
}

/// A blob that is being fetched.
#[derive(Debug)]
struct Fetching {
    held: Arc<AtomicU32>,
    plan: watch::Sender<Option<FetchPlan>>,
    number: u64,
}

impl Exchange {
    /// Fetches into the store that `shares` serves. `troubles` is told what the tracker should hear of; what finds no room
    /// there is left out.
    pub fn new(
        store: BlobStore,
        shares: Shares,
        network: Arc<dyn Network>,
        credentials: watch::Receiver<Credentials>,
        troubles: mpsc::Sender<(BlobId, Trouble)>,
    ) -> Self {
        let pool = Arc::new(Pool::new(network, credentials));
        let (fetching, changed) = (Mutex::default(), Arc::default());
        let (received_bytes, last_fetch) = (Arc::default(), AtomicU64::new(0));
        Self(Arc::new(Inner { store, shares, pool, fetching, received_bytes, last_fetch, changed, troubles }))
    }

    /// Makes sure that a blob of `size_bytes` is in the store, checked and durable. `coordinator` is asked for the blob's
    /// manifest first. `on_bytes` hears how many more bytes are here, those included that were here before. What an
    /// earlier fetch has left is gone on with.
    pub async fn fetch(
        &self,
        blob: BlobId,
        size_bytes: u64,
        coordinator: &BlobClient,
        limit: RateLimit,
        mut on_bytes: impl FnMut(u64) + Send,
    ) -> Result<(), FetchError> {
        loop {
            if let Some(size_bytes) = self.0.store.size(blob) {
                on_bytes(size_bytes);
                return Ok(());
            }
            let turn = self.begin(blob);
            match turn {
                Ok((registered, held, plan)) => {
                    let fetch = Fetch {
                        blob,
                        size_bytes,
                        store: &self.0.store,
                        shares: &self.0.shares,
                        pool: &self.0.pool,
                        limit,
                        held,
                        plan,
                        received_bytes: &self.0.received_bytes,
                        troubles: &self.0.troubles,
                    };
                    let fetched = fetch.run(coordinator, on_bytes).await;
                    drop(registered);
                    return fetched;
                }
                // Somebody else fetches it already.
                Err(mut theirs) => while theirs.changed().await.is_ok() {},
            }
        }
    }

    /// A new plan has come.
    pub fn plan(&self, plan: FetchPlan) {
        if let Some(fetching) = self.fetching().get(&plan.blob) {
            fetching.plan.send_replace(Some(plan));
        }
    }

    /// What is being fetched, in order.
    pub fn wants(&self) -> Vec<WantedBlob> {
        let fetching = self.fetching();
        let wanted = fetching.iter().map(|(blob, fetching)| WantedBlob {
            blob: *blob,
            held: fetching.held.load(Ordering::Relaxed),
            fetch: fetching.number,
        });
        let mut wanted: Vec<WantedBlob> = wanted.collect();
        wanted.sort_by_key(|wanted| wanted.blob);
        wanted
    }

    /// Bytes of pieces that came from others so far.
    pub fn received_bytes(&self) -> u64 {
        self.0.received_bytes.load(Ordering::Relaxed)
    }

    /// Waits until something else is fetched than before, or a fetch is over.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    #[allow(clippy::type_complexity, reason = "three handles, taken apart at once")]
    fn begin(
        &self,
        blob: BlobId,
    ) -> Result<
        (Registered, Arc<AtomicU32>, watch::Receiver<Option<FetchPlan>>),
        watch::Receiver<Option<FetchPlan>>,
    > {
        let mut fetching = self.fetching();
        if let Some(theirs) = fetching.get(&blob) {
            return Err(theirs.plan.subscribe());
        }
        let (plan, receiver) = watch::channel(None);
        let held = Arc::new(AtomicU32::new(0));
        let number = self.0.last_fetch.fetch_add(1, Ordering::Relaxed) + 1;
        fetching.insert(blob, Fetching { held: Arc::clone(&held), plan, number });
        self.0.changed.notify_one();
        Ok((Registered { exchange: self.clone(), blob }, held, receiver))
    }

    fn fetching(&self) -> MutexGuard<'_, HashMap<BlobId, Fetching>> {
        self.0.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a blob among those that are fetched.
struct Registered {
    exchange: Exchange,
    blob: BlobId,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.exchange.fetching().remove(&self.blob);
        self.exchange.0.changed.notify_one();
    }
}
