//! Bringing back to the coordinator what it has lost of the checkpoints that are wished here.

use std::{collections::BTreeSet, time::Duration};

use hatchery_common::{
    blob::BlobError,
    id::{BlobId, CheckpointId},
};
use hatchery_proto::{disk::blocking, transfer::TransferError};
use tokio::sync::watch;

use crate::{link::Clients, obtain::Obtainer};

/// How often the coordinator is asked what it lacks, beside the start of each session.
const RESTOCK_EVERY: Duration = Duration::from_mins(10);

/// Asks at the start of each session and then now and then, for as long as the agent lives.
pub(crate) async fn run(obtainer: Obtainer, wished: watch::Receiver<BTreeSet<CheckpointId>>) {
    loop {
        let mut session = obtainer.link().next_session();
        let clients = obtainer.link().clients().await;
        let ids = wished.borrow().clone();
        for id in ids {
            if let Err(error) = restock(&obtainer, &clients, id).await {
                forget_damaged(&obtainer, &error).await;
                tracing::debug!(checkpoint = %id.short(), %error, "cannot see what the coordinator lacks");
                break;
            }
        }
        session.wait(RESTOCK_EVERY).await;
    }
}

/// What is found damaged here when it is to be sent is fetched again, once somebody else has brought it.
async fn forget_damaged(obtainer: &Obtainer, error: &TransferError) {
    let TransferError::Blob(BlobError::Corrupt { id: blob, .. }) = error else { return };
    let (store, blob) = (obtainer.store().clone(), *blob);
    if let Err(error) = blocking(move || store.forget_all_with(blob)).await {
        tracing::warn!(%error, "a damaged checkpoint cannot be removed");
    }
}

async fn restock(obtainer: &Obtainer, clients: &Clients, id: CheckpointId) -> Result<(), TransferError> {
    let Some(manifest) = obtainer.store().manifest(id) else { return Ok(()) };
    let blobs: Vec<BlobId> = manifest.files.iter().map(|file| file.blob).collect();
    let _pins = obtainer.store().pin(blobs.clone());
    let missing = clients.blobs.missing(&blobs).await?;
    if !missing.is_empty() {
        tracing::info!(checkpoint = %id.short(), blobs = missing.len(), "the coordinator lacks blobs; they are sent again");
        clients.blobs.put(&missing, obtainer.store().blobs(), |_| {}).await?;
    }
    Ok(())
}
