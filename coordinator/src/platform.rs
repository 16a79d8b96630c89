//! The platform under a coordinator: this host, or what a simulation puts in its place.

use std::{fmt::Debug, io, net::SocketAddr, path::Path, sync::Arc};

use hatchery_net::{
    blocking,
    transport::{Listener, Network, Tcp},
};
use tokio::task::JoinHandle;

use crate::{
    core::store_thread::{self, StoreQueue},
    store::{SqliteStore, StoreError},
};

/// What a coordinator runs on.
#[tonic::async_trait]
pub trait Platform: Debug + Send + Sync {
    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>>;

    /// The way to nodes that serve one another: whether they can be dialled is tried from here.
    fn network(&self) -> Arc<dyn Network>;

    /// Opens the store in the file at `path`, or makes it, and answers `queue` from it. The task ends with the queue.
    async fn open_store(&self, path: &Path, queue: StoreQueue) -> Result<JoinHandle<()>, StoreError>;
}

/// This host: TCP, and SQLite on a thread of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

#[tonic::async_trait]
impl Platform for Host {
    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(Tcp::listen(address)?))
    }

    fn network(&self) -> Arc<dyn Network> {
        Arc::new(Tcp)
    }

    async fn open_store(&self, path: &Path, queue: StoreQueue) -> Result<JoinHandle<()>, StoreError> {
        // Opening checks the whole database, which may take a while.
        let path = path.to_owned();
        let store = blocking(move || SqliteStore::open(&path)).await?;
        Ok(tokio::task::spawn_blocking(move || store_thread::answer_all(store, queue)))
    }
}
