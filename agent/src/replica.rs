//! One replica: a checkpoint fetched, verified, and tried.

use std::{sync::Arc, time::Instant};

use hatchery_bdh::{Engine, Generation, SamplingParams, Window};
use hatchery_common::{id::CheckpointId, session::ReplicaState};
use hatchery_proto::disk::blocking;
use tokio::sync::{Semaphore, mpsc};

use crate::{models::Models, obtain::Obtainer};

/// What a new replica is asked, always the same.
const SELF_TEST_PROMPT: &[u8] = b"The ";
/// How many bytes it is to answer.
const SELF_TEST_BYTES: usize = 16;

/// What making a replica needs.
#[derive(Clone)]
pub(crate) struct ReplicaMaker {
    pub(crate) obtainer: Obtainer,
    pub(crate) models: Arc<Models>,
    /// One self-test at a time: each loads a model.
    pub(crate) self_tests: Arc<Semaphore>,
}

impl ReplicaMaker {
    /// Fetches and tries a checkpoint; the last update is `Ready` or `Failed`.
    pub(crate) async fn make(self, id: CheckpointId, updates: mpsc::Sender<(CheckpointId, ReplicaState)>) {
        let progress = updates.clone();
        let obtained = self.obtainer.obtain(id, |done_bytes, total_bytes| {
            // One of many: the next says more.
            let _full = progress.try_send((id, ReplicaState::Fetching { done_bytes, total_bytes }));
        });
        let tested = match obtained.await {
            Ok(_) => self.self_test(id).await,
            Err(error) => Err(error.to_string()),
        };
        let state = match tested {
            Ok(self_test_ms) => ReplicaState::Ready { self_test_ms },
            Err(why) => ReplicaState::Failed { why },
        };
        // Nobody listens any more only when the agent ends.
        let _nobody = updates.send((id, state)).await;
    }

    /// Lets the model answer; how long that took in milliseconds, loading left out.
    async fn self_test(&self, id: CheckpointId) -> Result<f64, String> {
        let _one = self.self_tests.acquire().await.map_err(|error| error.to_string())?;
        let folder = self.obtainer.store().folder(id).ok_or("it was dropped in the meantime")?;
        let models = Arc::clone(&self.models);
        blocking(move || {
            let (model, _) = models.get(id, &folder).map_err(|error| error.to_string())?;
            let start = Instant::now();
            let engine = Engine::new(model, Window::Default).map_err(|error| error.to_string())?;
            let params = SamplingParams::greedy();
            let answered = Generation::new(engine, SELF_TEST_PROMPT, &params, SELF_TEST_BYTES).count();
            if answered < SELF_TEST_BYTES {
                return Err(format!(
                    "its self-test broke off after {answered} bytes: its weights give no numbers"
                ));
            }
            Ok(start.elapsed().as_secs_f64() * 1000.0)
        })
        .await
    }
}
