//! Bringing back to the coordinator what it has lost of the checkpoints that are wished here.

use std::{collections::BTreeSet, time::Duration};

use hatchery_common::{blob::BlobError, id::CheckpointId};
use hatchery_net::{blocking, transfer::TransferError};
use tokio::{sync::watch, time::Instant};

use super::fetch::Fetcher;
use crate::session::coordinator::Clients;

/// How often the coordinator is asked what it lacks, beside the start of each session.
const REPAIR_EVERY: Duration = Duration::from_mins(10);

/// Asks at the start of each session and then now and then, for as long as the agent lives; and for what is newly wished at
/// once, since a session begins before its first assignment.
pub(crate) async fn run(fetcher: Fetcher, mut wished: watch::Receiver<BTreeSet<CheckpointId>>) {
    loop {
        let mut session = fetcher.coordinator().next_session();
        let clients = fetcher.coordinator().clients().await;
        let until = Instant::now() + REPAIR_EVERY;
        let mut asked = BTreeSet::new();
        loop {
            let now_wished = wished.borrow_and_update().clone();
            let well = repair_all(&fetcher, &clients, &now_wished, &mut asked).await;
            let left = until.saturating_duration_since(Instant::now());
            tokio::select! {
                () = session.wait(left) => break,
                // The sender goes when the agent ends, and this work with it.
                Ok(()) = wished.changed(), if well => {}
            }
        }
    }
}

/// Asks what the coordinator lacks of a checkpoint that has just come here: it may have been found damaged there on the way,
/// while others had it.
pub(crate) async fn after_fetch(fetcher: Fetcher, id: CheckpointId) {
    let clients = fetcher.coordinator().clients().await;
    if let Err(error) = repair(&fetcher, &clients, id).await {
        tracing::debug!(checkpoint = %id.short(), %error, "cannot tell which blobs the coordinator lacks");
    }
}

/// Asks for each of `wished` that is not among those `asked` for; false if it has to be tried again later.
async fn repair_all(
    fetcher: &Fetcher,
    clients: &Clients,
    wished: &BTreeSet<CheckpointId>,
    asked: &mut BTreeSet<CheckpointId>,
) -> bool {
    let new: Vec<CheckpointId> = wished.difference(asked).copied().collect();
    for id in new {
        if let Err(error) = repair(fetcher, clients, id).await {
            forget_damaged(fetcher, &error).await;
            tracing::debug!(checkpoint = %id.short(), %error, "cannot tell which blobs the coordinator lacks");
            return false;
        }
        asked.insert(id);
    }
    true
}

/// What is found damaged here when it is to be sent is fetched again, once somebody else has brought it.
async fn forget_damaged(fetcher: &Fetcher, error: &TransferError) {
    let TransferError::Blob(BlobError::Corrupt { id: blob, .. }) = error else { return };
    let (store, blob) = (fetcher.store().clone(), *blob);
    if let Err(error) = blocking(move || store.forget_all_with(blob)).await {
        tracing::warn!(%error, "cannot remove a damaged checkpoint");
    }
}

/// Brings what the coordinator lacks of one checkpoint that is here.
async fn repair(fetcher: &Fetcher, clients: &Clients, id: CheckpointId) -> Result<(), TransferError> {
    let blobs = fetcher.store().blobs_held(id);
    if blobs.is_empty() {
        return Ok(());
    }
    let _pins = fetcher.store().pin(blobs.clone());
    let missing = clients.blobs.missing(&blobs).await?;
    if !missing.is_empty() {
        tracing::info!(checkpoint = %id.short(), blobs = missing.len(), "the coordinator lacks blobs; sending them again");
        clients.blobs.put(&missing, fetcher.store().blobs(), |_| {}).await?;
    }
    Ok(())
}
