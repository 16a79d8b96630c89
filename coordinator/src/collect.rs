//! Garbage collection: blobs that nothing names any more are removed, never one that is referenced or in transfer (I11).
//!
//! A blob goes when no checkpoint and no dataset has named it for the grace, and nobody has read, brought or asked for it
//! in that time. So what is put before it is committed is safe for the grace after the call that put it, and what a client
//! was told is here already for the grace after that; a blob that is being read or written is never touched. An upload that
//! broke off goes when nobody has gone on with it for the grace. The grace begins anew with each start.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use hatchery_common::{blob::BlobInfo, id::BlobId, time::BootTime, view::BlobsView};
use hatchery_net::blocking;
use hatchery_scheduler::Cluster;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::api::context::Context;

/// How often it looks, at most.
const LOOK_EVERY_MAX: Duration = Duration::from_mins(1);
/// It looks so often within a grace, at least.
const LOOKS_PER_GRACE: u32 = 4;
/// And at least this far apart.
const LOOK_EVERY_MIN: Duration = Duration::from_millis(50);

/// Every blob that the fleet's records name.
pub(crate) fn referenced(cluster: &Cluster) -> HashSet<BlobId> {
    let checkpoints = cluster.checkpoints.values().flat_map(|one| &one.manifest.files).map(|file| file.blob);
    let datasets = cluster.datasets.values().flat_map(|one| one.manifest.files()).map(|file| file.blob);
    checkpoints.chain(datasets).collect()
}

/// What the store holds, and how much of it nothing names.
pub(crate) fn view(context: &Context) -> BlobsView {
    let referenced = referenced(&context.event_loop.snapshot().cluster);
    let blobs = context.blobs.list();
    let unfinished = context.blobs.partials();
    let unreferenced = blobs.iter().filter(|blob| !referenced.contains(&blob.id));
    BlobsView {
        count: blobs.len() as u64,
        bytes: context.blobs.used_bytes(),
        unreferenced_bytes: unreferenced.map(|blob| blob.size_bytes).sum(),
        unfinished_bytes: unfinished.iter().map(|blob| blob.size_bytes).sum(),
        bytes_max: context.blob_bytes_max,
        disk_free_bytes: context.blobs.free_bytes().ok(),
    }
}

/// Collects until `stopping`.
pub(crate) async fn run(context: Arc<Context>, grace: Duration, stopping: CancellationToken) {
    let mut look = interval((grace / LOOKS_PER_GRACE).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut collector = Collector { context, grace, unnamed_since: HashMap::new() };
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = stopping.cancelled() => return,
        }
        collector = blocking(move || {
            collector.collect(BootTime::now());
            collector
        })
        .await;
    }
}

struct Collector {
    context: Arc<Context>,
    grace: Duration,
    /// Since when nothing has named a blob, as far as was seen.
    unnamed_since: HashMap<BlobId, BootTime>,
}

impl Collector {
    fn collect(&mut self, now: BootTime) {
        // The blobs first: one that comes after it is not looked at, one that was named before it is seen to be.
        let blobs = self.context.blobs.list();
        let referenced = referenced(&self.context.event_loop.snapshot().cluster);
        let unnamed: HashMap<BlobId, BlobInfo> = blobs
            .into_iter()
            .filter(|blob| !referenced.contains(&blob.id))
            .map(|blob| (blob.id, blob))
            .collect();
        self.unnamed_since.retain(|id, _| unnamed.contains_key(id));
        let Some(idle_since) = now.0.checked_sub(self.grace.as_millis() as u64).map(BootTime) else { return };
        let broken_off = self.context.blobs.discard_idle_partials(idle_since);
        if !broken_off.is_empty() {
            let bytes: u64 = broken_off.iter().map(|blob| blob.size_bytes).sum();
            tracing::info!(count = broken_off.len(), bytes, "removed abandoned uploads");
        }
        let (mut count, mut bytes) = (0_u64, 0_u64);
        for (id, blob) in unnamed {
            let since = *self.unnamed_since.entry(id).or_insert(now);
            if now.since(since) < self.grace {
                continue;
            }
            match self.context.blobs.remove_idle(id, idle_since) {
                Ok(true) => {
                    self.unnamed_since.remove(&id);
                    count += 1;
                    bytes += blob.size_bytes;
                }
                // Somebody has asked for it meanwhile.
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, blob = %id, "cannot remove an unreferenced blob");
                }
            }
        }
        if count > 0 {
            tracing::info!(count, bytes, "removed unreferenced blobs");
        }
    }
}
