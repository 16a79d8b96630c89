//! Getting a checkpoint here: manifest, missing blobs, folder.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use futures::{StreamExt, TryStreamExt, stream};
use hatchery_common::{
    checkpoint::{CheckpointManifest, ReplicaForm},
    id::{BlobId, CheckpointId},
};
use hatchery_net::{
    RateLimit, blocking,
    swarm::{FetchError as SwarmError, SWARM_SIZE_BYTES_MIN},
};

use super::{error::FetchError, keyed_locks::KeyedLocks, store::CheckpointStore};
use crate::{
    peers::Peers,
    session::coordinator::{Clients, Coordinator},
};

/// Large blobs that are fetched from other nodes at once.
const BLOBS_AT_ONCE: usize = 4;

/// Gets blobs and checkpoints; each checkpoint by one worker at a time, whoever asks for it.
#[derive(Clone)]
pub(crate) struct Fetcher {
    store: CheckpointStore,
    coordinator: Coordinator,
    peers: Option<Peers>,
    checkpoints: KeyedLocks<CheckpointId>,
}

impl Fetcher {
    pub(crate) fn new(store: CheckpointStore, coordinator: Coordinator, peers: Option<Peers>) -> Self {
        Self { store, coordinator, peers, checkpoints: KeyedLocks::default() }
    }

    /// Where checkpoints and blobs are kept.
    pub(crate) fn store(&self) -> &CheckpointStore {
        &self.store
    }

    /// The way to the coordinator.
    pub(crate) fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// Makes sure that blobs, each with its size in bytes, are here, fetched no faster than said; pin them first. Large
    /// ones come from other nodes, the others from the coordinator. If there is no room for them, what nobody needs goes.
    /// `on_bytes` hears of how many more.
    pub(crate) async fn blobs(
        &self,
        named: &[(BlobId, u64)],
        limit: &RateLimit,
        mut on_bytes: impl FnMut(u64) + Send,
    ) -> Result<(), FetchError> {
        let fetched = self.fetch_blobs(named, limit, &mut on_bytes).await;
        if !fetched.as_ref().is_err_and(FetchError::is_for_want_of_room) {
            return fetched;
        }
        let store = self.store.clone();
        if blocking(move || store.make_room()).await? {
            return self.fetch_blobs(named, limit, on_bytes).await;
        }
        fetched
    }

    async fn fetch_blobs(
        &self,
        named: &[(BlobId, u64)],
        limit: &RateLimit,
        mut on_bytes: impl FnMut(u64) + Send,
    ) -> Result<(), FetchError> {
        if named.iter().all(|(blob, _)| self.store.blobs().has(*blob)) {
            return Ok(());
        }
        let mut clients = self.coordinator.clients().await;
        clients.blobs = clients.blobs.limited_to(limit.clone());
        let peers = self.peers.as_ref();
        let (large, small): (Vec<_>, Vec<_>) = named
            .iter()
            .copied()
            .partition(|(_, size_bytes)| peers.is_some() && *size_bytes >= SWARM_SIZE_BYTES_MIN);
        // Those first that the coordinator alone gives: once they are here, it may go, and the rest comes from others.
        let small: Vec<BlobId> = small.into_iter().map(|(blob, _)| blob).collect();
        clients.blobs.fetch_all(&small, self.store.blobs(), &mut on_bytes).await?;
        let Some(peers) = peers else { return Ok(()) };
        // Several at once: of each it is known from the beginning who has it, should the coordinator go meanwhile.
        let on_bytes = Mutex::new(on_bytes);
        let on_more = |more_bytes| (on_bytes.lock().unwrap_or_else(PoisonError::into_inner))(more_bytes);
        let (clients, on_more) = (&clients, &on_more);
        stream::iter(large)
            .map(|named| self.fetch_from_peers(peers, clients, limit, named, on_more))
            .buffer_unordered(BLOBS_AT_ONCE)
            .try_collect()
            .await
    }

    /// One blob from whoever has it; from the coordinator if the others do not bring it.
    async fn fetch_from_peers(
        &self,
        peers: &Peers,
        clients: &Clients,
        limit: &RateLimit,
        (blob, size_bytes): (BlobId, u64),
        mut on_bytes: impl FnMut(u64) + Send,
    ) -> Result<(), FetchError> {
        let mut told_bytes = 0;
        let limit = limit.clone();
        let fetched = peers.exchange().fetch(blob, size_bytes, &clients.blobs, limit, |more_bytes| {
            told_bytes += more_bytes;
            on_bytes(more_bytes);
        });
        match fetched.await {
            Ok(()) => Ok(()),
            Err(error @ (SwarmError::Blob(_) | SwarmError::Size { .. })) => Err(error.into()),
            Err(error) => {
                tracing::warn!(blob = %blob.short(), %error, "fetching from the coordinator instead");
                // What has come counts once.
                let mut known_bytes = told_bytes;
                let on_more = |more_bytes: u64| {
                    let known = known_bytes.min(more_bytes);
                    known_bytes -= known;
                    on_bytes(more_bytes - known);
                };
                clients.blobs.fetch(blob, self.store.blobs(), on_more).await?;
                Ok(())
            }
        }
    }

    /// The manifest, from here or from the coordinator.
    pub(crate) async fn manifest(&self, id: CheckpointId) -> Result<Arc<CheckpointManifest>, FetchError> {
        if let Some(manifest) = self.store.manifest(id) {
            return Ok(manifest);
        }
        let (manifest, _) = self.coordinator.clients().await.agents.checkpoint_manifest(id).await?;
        manifest.check()?;
        Ok(Arc::new(manifest))
    }

    /// Makes sure that a checkpoint is here in this form, or whole, and undamaged, fetched no faster than said. `on_bytes`
    /// hears how many bytes are here, and of how many.
    pub(crate) async fn fetch(
        &self,
        id: CheckpointId,
        wished: ReplicaForm,
        limit: &RateLimit,
        mut on_bytes: impl FnMut(u64, u64) + Send,
    ) -> Result<Arc<CheckpointManifest>, FetchError> {
        let _alone = self.checkpoints.lock(id).await;
        let manifest = self.manifest(id).await?;
        let form = manifest.form_for(self.store.form(id).map_or(wished, |held| held.max(wished)));
        let total_bytes = manifest.bytes_in(form);
        let named: Vec<(BlobId, u64)> =
            manifest.files_in(form).map(|(_, file)| (file.blob, file.size_bytes)).collect();
        let blobs: Vec<BlobId> = named.iter().map(|(blob, _)| *blob).collect();
        let pins = self.store.pin(blobs.clone());
        self.store.begin(id, &manifest, form);
        let (began, lacks) = (Instant::now(), !blobs.iter().all(|id| self.store.blobs().has(*id)));
        let mut done_bytes = 0;
        self.blobs(&named, limit, |more_bytes| {
            done_bytes += more_bytes;
            on_bytes(done_bytes.min(total_bytes), total_bytes);
        })
        .await?;
        if lacks {
            let ms = began.elapsed().as_millis();
            tracing::info!(checkpoint = %id, bytes = done_bytes, ms, "checkpoint fetched");
        }
        let (store, installed) = (self.store.clone(), Arc::clone(&manifest));
        // The work goes on when nobody waits for it any more; so must what keeps its blobs.
        let install = move || {
            let _pins = pins;
            store.install(&installed, form)
        };
        blocking(install).await?;
        Ok(manifest)
    }
}
