//! An agent as a test starts, stops and kills it, and what it says in short.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use hatchery_agent::{AgentSettings, Host, Platform, run_on};
use hatchery_common::{
    device::Device,
    durable::FolderLock,
    id::{AttemptId, CheckpointId, DatasetId, Epoch, JobId},
    recipe::JobSpec,
    session::{AssignedAttempt, AttemptPhase, ReplicaState},
    trainer::{AttemptOrder, Ending},
};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{
    PATIENCE,
    coordinator::{Coordinator, Notes},
    fake_trainer,
    inhabited::{Inhabited, Owner},
    small_job,
};

pub struct Node {
    pub state: tempfile::TempDir,
    pub trainer: PathBuf,
    pub calibrate: bool,
    pub free_disk_bytes_min: u64,
    pub blob_bytes_max: u64,
    pub outage_secs_max: u64,
    pub cpu_trainers: u32,
    pub answer_on_gpu: bool,
    /// Whoever uses the machine beside.
    pub owner: Option<Owner>,
    pub running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Node {
    pub fn new() -> Self {
        Self {
            state: tempfile::tempdir().unwrap(),
            trainer: fake_trainer(),
            calibrate: false,
            free_disk_bytes_min: 0,
            blob_bytes_max: 0,
            outage_secs_max: AgentSettings::default().outage_secs_max,
            cpu_trainers: 1,
            answer_on_gpu: true,
            owner: None,
            running: None,
        }
    }

    pub fn started(coordinator: &Coordinator) -> Self {
        let mut node = Self::new();
        node.start(coordinator);
        node
    }

    pub fn start(&mut self, coordinator: &Coordinator) {
        let settings = AgentSettings {
            state: self.state.path().to_owned(),
            trainer: Some(self.trainer.clone()),
            calibrate: self.calibrate,
            free_disk_bytes_min: self.free_disk_bytes_min,
            blob_bytes_max: self.blob_bytes_max,
            outage_secs_max: self.outage_secs_max,
            cpu_trainers: self.cpu_trainers,
            answer_on_gpu: self.answer_on_gpu,
            availability: self.owner.as_ref().map(|_| Owner::policy()).unwrap_or_default(),
            ..AgentSettings::default()
        };
        until_unlocked(self.state.path());
        let (stop, stopped) = oneshot::channel();
        let credentials = coordinator.credentials();
        let platform: Arc<dyn Platform> = match &self.owner {
            Some(owner) => Arc::new(Inhabited::new(self.trainer.clone(), owner.clone())),
            None => Arc::new(Host::new(self.trainer.clone())),
        };
        let running = tokio::spawn(async move {
            let shutdown = async { drop(stopped.await) };
            run_on(platform, settings, credentials, shutdown).await.unwrap();
        });
        self.running = Some((stop, running));
    }

    pub async fn leave(&mut self) {
        let (stop, running) = self.running.take().unwrap();
        stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, running).await.expect("it leaves").unwrap();
    }

    /// As on SIGKILL, but that its trainer dies with it.
    pub async fn crash(&mut self) {
        let (_stop, running) = self.running.take().unwrap();
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
    }

    pub fn attempt_folder(&self, epoch: u64) -> PathBuf {
        self.state.path().join("attempts").join(format!("{JOB}-{epoch}"))
    }

    pub fn order(&self, epoch: u64) -> AttemptOrder {
        serde_json::from_slice(&fs::read(self.attempt_folder(epoch).join("order.json")).unwrap()).unwrap()
    }

    pub fn process(&self) -> Option<u32> {
        let text = fs::read(self.attempt_folder(1).join("process.json")).ok()?;
        Some(serde_json::from_slice::<serde_json::Value>(&text).unwrap()["id"].as_u64().unwrap() as u32)
    }
}

pub const JOB: JobId = JobId::from_bytes([3; 16]);

/// The attempt of that epoch.
pub fn attempt_id(epoch: u64) -> AttemptId {
    AttemptId { job: JOB, epoch: Epoch(epoch) }
}

pub fn attempt(dataset: DatasetId) -> AssignedAttempt {
    AssignedAttempt {
        id: attempt_id(1),
        spec: small_job(dataset),
        device: Device::CPU,
        resume_from: None,
        stop: false,
    }
}

/// A coordinator with one checkpoint of a small model, made by a first node.
pub async fn with_checkpoint() -> (Coordinator, CheckpointId) {
    with_checkpoint_of(small_job).await
}

/// A coordinator with one checkpoint of a job, made by a first node.
pub async fn with_checkpoint_of(job: impl FnOnce(DatasetId) -> JobSpec) -> (Coordinator, CheckpointId) {
    let coordinator = Coordinator::start().await;
    let dataset = coordinator.dataset("checkpoint 10");
    let mut node = Node::started(&coordinator);
    let attempt = AssignedAttempt { spec: job(dataset), ..attempt(dataset) };
    coordinator.assign(|assignment| assignment.attempts = vec![attempt]);
    coordinator.until("it ends", |notes| ending(notes) == Some(&Ending::Completed)).await;
    coordinator.assign(|assignment| assignment.attempts.clear());
    node.leave().await;
    let id = coordinator.notes().commits[0].id();
    (coordinator, id)
}

pub fn ending(notes: &Notes) -> Option<&Ending> {
    match &notes.attempt(0)?.phase {
        AttemptPhase::Ended { ending, .. } => Some(ending),
        _ => None,
    }
}

pub fn running(notes: &Notes) -> bool {
    notes.attempt(0).is_some_and(|attempt| attempt.phase == AttemptPhase::Running)
}

pub fn ready(notes: &Notes, id: CheckpointId) -> bool {
    matches!(notes.replica(id), Some(ReplicaState::Ready { .. }))
}

pub fn steps(notes: &Notes) -> Vec<u64> {
    notes.commits.iter().map(|manifest| manifest.step).collect()
}

/// All agents of these tests share one process: while it starts a trainer, the trainer-to-be holds copies of their locks,
/// for the moment until it is a program of its own.
fn until_unlocked(folder: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while FolderLock::acquire(folder).is_err() {
        assert!(Instant::now() < deadline, "{} stays locked", folder.display());
        std::thread::yield_now();
    }
}
