//! One replica: a checkpoint fetched, verified, and tried.

use std::sync::Arc;

use hatchery_common::{checkpoint::ReplicaForm, id::CheckpointId, session::ReplicaState};
use hatchery_net::RateLimit;
use hatchery_proto::client::CallError;
use tokio::sync::mpsc;

use super::{fetch::Fetcher, models::Models, repair, self_test::SelfTester};

/// What making a replica needs.
#[derive(Clone)]
pub(crate) struct ReplicaMaker {
    pub(crate) fetcher: Fetcher,
    pub(crate) models: Arc<Models>,
    pub(crate) self_tester: SelfTester,
}

impl ReplicaMaker {
    /// Fetches a checkpoint, no faster than said, and tries it; the last update is `Ready` or `Failed`.
    pub(crate) async fn make(
        self,
        id: CheckpointId,
        limit: RateLimit,
        updates: mpsc::Sender<(CheckpointId, ReplicaState)>,
    ) {
        let progress = updates.clone();
        let on_bytes = |done_bytes, total_bytes| {
            // One of many: the next says more.
            let _full = progress.try_send((id, ReplicaState::Fetching { done_bytes, total_bytes }));
        };
        let fetched = self.fetcher.fetch(id, ReplicaForm::ServingOnly, &limit, on_bytes);
        let tested = match fetched.await {
            Ok(_) => self.self_test(id).await,
            Err(error) => Err(error.to_string()),
        };
        let state = match tested {
            Ok(self_test_ms) => {
                // By itself, since this work is over once the replica is ready.
                tokio::spawn(repair::after_fetch(self.fetcher.clone(), id));
                ReplicaState::Ready { self_test_ms }
            }
            Err(why) => ReplicaState::Failed { why },
        };
        // Nobody listens any more only when the agent ends.
        let _nobody = updates.send((id, state)).await;
    }

    /// Lets the model answer, which must be as it answered where it was made; how long that took in milliseconds.
    async fn self_test(&self, id: CheckpointId) -> Result<f64, String> {
        let agents = self.fetcher.coordinator().clients().await.agents;
        let source = match agents.checkpoint_manifest(id).await {
            Ok((_, source)) => source,
            // It is kept no longer; here it answers until something else does.
            Err(CallError::NotFound(_)) => None,
            Err(error) => return Err(format!("cannot fetch the self-test's reference: {error}")),
        };
        loop {
            let (folder, form) = self.fetcher.store().folder(id).ok_or("it was removed in the meantime")?;
            let models = Arc::clone(&self.models);
            let load = move || {
                models.get((id, form), &folder).map(|(model, _)| model).map_err(|error| error.to_string())
            };
            let answered = self.self_tester.run(load).await;
            if self.fetcher.store().form(id).is_some_and(|now| now > form) {
                // It became whole meanwhile: nobody knows which weights have answered.
                self.models.forget(id);
                continue;
            }
            let answered = answered?;
            let source = match form {
                ReplicaForm::ServingOnly => source.as_ref().and_then(|source| source.serving.as_deref()),
                ReplicaForm::Whole => source.as_ref(),
            };
            source.map_or(Ok(()), |source| answered.compare(source))?;
            return Ok(answered.took_ms);
        }
    }
}
