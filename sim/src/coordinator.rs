//! The coordinator's platform: the simulated network, and a real store whose disk is slow, full, or loses answers.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use hatchery_coordinator::{
    Platform, StoreQueue,
    store::{SqliteStore, Store, StoreError, StoredEvent},
};
use hatchery_net::transport::{Listener, Network};
use hatchery_scheduler::{Cluster, Event};
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    history::{History, lock},
    network::{Door, Wires},
};

/// What the coordinator's disk does now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Disk {
    /// How long each call takes.
    pub(crate) delay: Duration,
    /// It has no room: commits fail, and change nothing.
    pub(crate) full: bool,
    /// So many of the next commits are durable, and said to have failed.
    pub(crate) answers_lost: u32,
    /// The next commit fails for good: nobody knows what the disk holds.
    pub(crate) broken: bool,
}

/// The coordinator's platform.
#[derive(Clone, Debug)]
pub(crate) struct CoordinatorPlatform {
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) history: Arc<Mutex<History>>,
}

#[tonic::async_trait]
impl Platform for CoordinatorPlatform {
    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(Door::open(address).await?))
    }

    fn network(&self) -> Arc<dyn Network> {
        Arc::new(Wires)
    }

    async fn open_store(&self, path: &Path, mut queue: StoreQueue) -> Result<JoinHandle<()>, StoreError> {
        let platform = self.clone();
        let mut store = FaultyStore { inner: SqliteStore::open(path)?, path: path.to_owned(), platform };
        Ok(tokio::spawn(async move {
            while let Some(call) = queue.next().await {
                let delay = lock(&store.platform.disk).delay;
                if !delay.is_zero() {
                    sleep(delay).await;
                }
                if !call.answer(&mut store) {
                    break;
                }
            }
        }))
    }
}

struct FaultyStore {
    inner: SqliteStore,
    path: PathBuf,
    platform: CoordinatorPlatform,
}

impl Store for FaultyStore {
    fn load(&mut self) -> Result<Cluster, StoreError> {
        self.inner.load()
    }

    fn commit(&mut self, events: &[Event]) -> Result<(), StoreError> {
        let fails = |make: fn(PathBuf, rusqlite::Error) -> StoreError| {
            Err(make(self.path.clone(), rusqlite::Error::InvalidQuery))
        };
        let mut disk = lock(&self.platform.disk);
        if disk.full {
            lock(&self.platform.history).note(format_args!("commit: full"));
            return fails(|path, source| StoreError::Full { path, source });
        }
        if let Err(error) = self.inner.commit(events) {
            lock(&self.platform.history).note(format_args!("commit: {error}"));
            return Err(error);
        }
        lock(&self.platform.history).committed(events);
        if disk.broken {
            disk.broken = false;
            return fails(|path, source| StoreError::Io { path, source });
        }
        if disk.answers_lost > 0 {
            disk.answers_lost -= 1;
            return fails(|path, source| StoreError::Other { path, source });
        }
        Ok(())
    }

    fn events(&mut self, after: u64, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        self.inner.events(after, limit)
    }
}
