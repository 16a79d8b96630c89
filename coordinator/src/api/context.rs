//! The parts of a coordinator that its services and sessions share.

use std::{sync::Arc, time::Duration};

use hatchery_common::{blob::BlobStore, id::BlobId, time::Timestamp, tls::Authority};

use crate::{
    api::error::ApiError,
    core::{handle::LoopHandle, store_thread::StoreCalls},
    sessions::{generations::Generations, logs::Logs, registry::Sessions, tracking::Tracking},
};

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) event_loop: LoopHandle,
    pub(crate) store: StoreCalls,
    pub(crate) blobs: BlobStore,
    /// Most bytes of blobs, for people.
    pub(crate) blob_bytes_max: Option<u64>,
    pub(crate) logs: Logs,
    pub(crate) sessions: Sessions,
    pub(crate) tracking: Arc<Tracking>,
    pub(crate) generations: Generations,
    pub(crate) authority: Authority,
    /// Where others reach this coordinator, for join strings.
    pub(crate) addresses: Vec<String>,
    pub(crate) report_every: Duration,
    pub(crate) started_at: Timestamp,
}

impl Context {
    /// Checks that blobs are here, each with the size that is said of it.
    pub(crate) fn check_blobs(&self, named: impl Iterator<Item = (BlobId, u64)>) -> Result<(), ApiError> {
        let (mut count, mut missing, mut first) = (0, 0, None);
        for (blob, size_bytes) in named {
            count += 1;
            if self.blobs.size(blob) != Some(size_bytes) {
                missing += 1;
                first.get_or_insert(blob);
            }
        }
        match first {
            Some(first) => Err(ApiError::BlobsMissing { missing, count, first: first.to_string() }),
            None => Ok(()),
        }
    }
}
