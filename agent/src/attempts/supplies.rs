//! What a trainer needs: the dataset's corpus, and the checkpoint that the attempt begins with.
//!
//! An agent that was started again while its lease lives takes the attempt up under the same epoch, from the newest of:
//! a finished checkpoint folder of this attempt, the last one that it committed, and the one that it was assigned. A
//! local one counts only if its step is not below the assigned one's.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use hatchery_common::{
    checkpoint::ReplicaForm,
    id::CheckpointId,
    session::AssignedAttempt,
    trainer::{Ending, FailureCause},
};
use hatchery_net::RateLimit;
use hatchery_proto::client::CallError;

use super::{
    ending::failed,
    finished::Finished,
    folder::{AttemptFolder, Committed},
    messages::{AttemptUpdate, Reporter},
};
use crate::replicas::{corpora::Corpora, error::FetchError, fetch::Fetcher};

/// How long an attempt waits for blobs that the coordinator has lost: nodes that hold them bring them again.
const LOST_BLOB_WITHIN: Duration = Duration::from_mins(30);

/// What a trainer needs.
pub(super) struct Supplies {
    pub(super) corpus: PathBuf,
    pub(super) begin: Begin,
}

/// What an attempt begins with.
pub(super) enum Begin {
    Anew,
    /// With all of the checkpoint in this folder.
    Resume(PathBuf),
    /// With the weights of the checkpoint in this folder.
    FineTune(PathBuf),
}

/// Gets the supplies of one attempt.
pub(super) struct Supplier<'a> {
    pub(super) assigned: &'a AssignedAttempt,
    pub(super) folder: &'a AttemptFolder,
    /// The newest finished checkpoint of an earlier agent.
    pub(super) leftover: Option<&'a Finished>,
    pub(super) fetcher: &'a Fetcher,
    pub(super) corpora: &'a Corpora,
    pub(super) reporter: &'a Reporter,
}

impl Supplier<'_> {
    /// Gets them, however long it takes; an error is how the attempt ends.
    pub(super) async fn get(&self) -> Result<Supplies, Ending> {
        let mut retries = self.fetcher.coordinator().retries();
        let mut lost_since = None;
        loop {
            match self.try_get().await {
                Ok(supplies) => return Ok(supplies),
                Err(error) => {
                    if let Some(cause) = error.cause() {
                        return Err(failed(cause, format!("cannot fetch its inputs: {error}")));
                    }
                    if !error.is_lost_blob() {
                        lost_since = None;
                    } else if lost_since.get_or_insert_with(Instant::now).elapsed() >= LOST_BLOB_WITHIN {
                        let message = format!("the coordinator has lost its inputs: {error}");
                        return Err(failed(FailureCause::Unavailable, message));
                    }
                    tracing::warn!(job = %self.assigned.id.job.short(), %error,
                        "an attempt waits for its inputs");
                }
            }
            retries.wait().await;
        }
    }

    async fn try_get(&self) -> Result<Supplies, FetchError> {
        // One of many: the next says more.
        let on_bytes = |done_bytes, total_bytes| {
            self.reporter.try_tell(AttemptUpdate::Fetching { done_bytes, total_bytes });
        };
        let corpus = self.corpora.fetch(self.assigned.spec.dataset, on_bytes).await?;
        let begin = self.begin(on_bytes).await?;
        Ok(Supplies { corpus, begin })
    }

    async fn begin(&self, on_bytes: impl Fn(u64, u64) + Send + Sync) -> Result<Begin, FetchError> {
        let assigned_step = match self.assigned.resume_from {
            Some(id) if !self.assigned.spec.fine_tunes(id) => self.fetcher.manifest(id).await?.step,
            _ => 0,
        };
        let committed = self.folder.committed().filter(|committed| committed.step >= assigned_step);
        let local_step = committed.as_ref().map_or(assigned_step, |committed| committed.step);
        if let Some(leftover) = self.leftover.filter(|leftover| leftover.step >= local_step) {
            return Ok(Begin::Resume(leftover.folder.clone()));
        }
        if let Some(Committed { checkpoint, .. }) = committed {
            match self.resume(checkpoint, &on_bytes).await {
                // Others may have taken its place meanwhile, and it is kept no longer.
                Err(FetchError::Call(CallError::NotFound(why))) => {
                    tracing::warn!(job = %self.assigned.id.job.short(), why,
                        "its committed checkpoint is missing; resuming from the assigned one");
                }
                other => return other,
            }
        }
        match self.assigned.resume_from {
            Some(id) => self.resume(id, &on_bytes).await,
            None => Ok(Begin::Anew),
        }
    }

    /// Gets a checkpoint to begin with.
    async fn resume(
        &self,
        id: CheckpointId,
        on_bytes: &(impl Fn(u64, u64) + Send + Sync),
    ) -> Result<Begin, FetchError> {
        self.reporter.tell(AttemptUpdate::Uses(id)).await;
        self.fetcher.fetch(id, ReplicaForm::Whole, &RateLimit::new(None), on_bytes).await?;
        Ok(match self.fetcher.store().folder(id) {
            Some((folder, _)) if self.assigned.spec.fine_tunes(id) => Begin::FineTune(folder),
            Some((folder, _)) => Begin::Resume(folder),
            None => Begin::Anew,
        })
    }
}
