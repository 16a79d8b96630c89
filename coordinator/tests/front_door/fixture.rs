//! A coordinator in a temporary folder.

use std::{path::PathBuf, time::Duration};

use futures::StreamExt as _;
use hatchery_common::{
    blob::{BlobLimits, BlobStore},
    checkpoint::{CheckpointFile, CheckpointManifest},
    dataset::{DatasetFile, DatasetManifest},
    id::{CheckpointId, DatasetId, Epoch, JobId, Name, RequestId},
    model::{ModelConfig, RawModelConfig},
    recipe::{JobSpec, RawTrainSpec, TrainSpec},
    tls::Credentials,
    trainer::Metrics,
    view::JobView,
};
use hatchery_coordinator::{CoordinatorSettings, Ready, RunError, run};
use hatchery_net::{Connect, transfer::BlobClient};
use hatchery_proto::client::{Answers, CallError, FleetClient};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Optimizer steps of the jobs here.
pub(crate) const STEPS: u64 = 20;

/// Waits, but not for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it takes too long")
}

pub(crate) fn name(text: &str) -> Name {
    Name::new("name", text).unwrap()
}

pub(crate) struct Fixture {
    pub(crate) folder: TempDir,
    settings: CoordinatorSettings,
    running: Option<Running>,
}

struct Running {
    ready: Ready,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut CoordinatorSettings)) -> Self {
        Self::try_start_with(change).await.unwrap()
    }

    pub(crate) async fn try_start_with(
        change: impl FnOnce(&mut CoordinatorSettings),
    ) -> Result<Self, RunError> {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = CoordinatorSettings {
            listen: "127.0.0.1:0".into(),
            disk_free_bytes_min: 0,
            ..CoordinatorSettings::default()
        };
        change(&mut settings);
        let mut fixture = Self { folder, settings, running: None };
        fixture.begin().await?;
        Ok(fixture)
    }

    /// Starts the coordinator; on an error it has ended.
    pub(crate) async fn begin(&mut self) -> Result<(), RunError> {
        let settings = self.settings.clone().check(self.folder.path()).unwrap();
        let (shutdown, (on_ready, ready)) = (CancellationToken::new(), oneshot::channel());
        let task = tokio::spawn(run(settings, shutdown.clone(), on_ready));
        match soon(ready).await {
            Ok(ready) => {
                self.running = Some(Running { ready, shutdown, task });
                Ok(())
            }
            Err(_) => Err(soon(task).await.unwrap().unwrap_err()),
        }
    }

    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.shutdown.cancel();
        soon(running.task).await.unwrap().unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.begin().await.unwrap();
    }

    pub(crate) fn address(&self) -> String {
        self.running.as_ref().unwrap().ready.address.to_string()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("coordinator")
    }

    pub(crate) fn client_folder(&self) -> PathBuf {
        self.folder.path().join("client")
    }

    /// The local operator's credentials.
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials::load(&self.client_folder()).unwrap()
    }

    pub(crate) async fn fleet(&self) -> FleetClient {
        soon(FleetClient::connect(&self.credentials())).await.unwrap()
    }

    /// Puts a small dataset and registers it.
    pub(crate) async fn dataset(&self) -> DatasetId {
        let text = b"to be or not to be, that is the question\n".repeat(400);
        let folder = tempfile::tempdir().unwrap();
        let store =
            BlobStore::open(folder.path(), BlobLimits { free_bytes_min: 0, ..Default::default() }).unwrap();
        let blob = store.put_bytes(&text).unwrap();
        let blobs = soon(BlobClient::connect(&self.credentials())).await.unwrap();
        soon(blobs.put(&[blob], &store, |_| {})).await.unwrap();
        let file = DatasetFile { path: "hamlet.txt".into(), blob, size_bytes: text.len() as u64 };
        let manifest = DatasetManifest::new(name("hamlet"), vec![file]).unwrap();
        soon(self.fleet().await.create_dataset(&manifest)).await.unwrap().id
    }

    /// Registers a dataset and submits a job over it.
    pub(crate) async fn submit(&self) -> JobView {
        let spec = spec(self.dataset().await);
        soon(self.fleet().await.submit(RequestId::random(), &spec)).await.unwrap().0
    }

    /// The job as soon as it is as wanted.
    pub(crate) async fn job_when(&self, job: JobId, wanted: impl Fn(&JobView) -> bool) -> JobView {
        let mut jobs = soon(self.fleet().await.watch_job(&job.to_string())).await.unwrap();
        soon_when(&mut jobs, wanted).await
    }
}

/// The next of a stream that is as wanted.
pub(crate) async fn soon_when<T>(stream: &mut Answers<T>, wanted: impl Fn(&T) -> bool) -> T {
    soon(async {
        loop {
            let next = stream.next().await.expect("the stream has ended").expect("the stream has failed");
            if wanted(&next) {
                return next;
            }
        }
    })
    .await
}

/// The first error of a stream.
pub(crate) async fn soon_failed<T>(stream: &mut Answers<T>) -> CallError {
    soon(async {
        loop {
            if let Err(error) = stream.next().await.expect("the stream has ended without an error") {
                return error;
            }
        }
    })
    .await
}

pub(crate) fn spec(dataset: DatasetId) -> JobSpec {
    let train = RawTrainSpec { steps: STEPS, checkpoint_every: 10, ..RawTrainSpec::default() };
    JobSpec::new(name("demo"), dataset, model(), TrainSpec::new(train).unwrap())
}

fn model() -> ModelConfig {
    let raw = RawModelConfig {
        n_layer: 2,
        n_embd: 32,
        mlp_internal_dim_multiplier: 8,
        ..RawModelConfig::default()
    };
    ModelConfig::new(raw).unwrap()
}

/// A checkpoint of a job made by [`spec`]; its files are made up and lie in `store`.
pub(crate) fn checkpoint(
    store: &BlobStore,
    job: &JobView,
    epoch: Epoch,
    step: u64,
    parent: Option<CheckpointId>,
) -> CheckpointManifest {
    let file = |name: &str| {
        let bytes = format!("{name} of {} {epoch} {step}", job.id).into_bytes();
        let blob = store.put_bytes(&bytes).unwrap();
        CheckpointFile { name: name.to_owned(), blob, size_bytes: bytes.len() as u64 }
    };
    CheckpointManifest {
        job: job.id,
        epoch,
        step,
        parent,
        dataset: job.spec.dataset,
        model: job.spec.model.clone(),
        block: job.spec.train.raw().block,
        metrics: Metrics { first_loss: Some(5.5), train_loss: Some(2.0), ..Metrics::default() },
        files: CheckpointManifest::FILES.map(file).to_vec(),
    }
}
