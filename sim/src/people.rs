//! The people: they put the fleet together, submit jobs, send the same twice and late, cancel, pause, resume and requeue
//! some, and drain nodes.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use hatchery_common::{
    access::Scope,
    blob::{BlobLimits, BlobStore},
    dataset::{DatasetFile, DatasetManifest},
    id::{DatasetId, JobId, Name, RequestId},
    model::{ModelConfig, RawModelConfig},
    node::NodeMode,
    recipe::{JobSpec, Labels, Priority, RawTrainSpec, ReplicaPolicy, ReplicaWeights, TrainSpec},
    tls::{Credentials, JoinString},
};
use hatchery_net::{Connect, transfer::BlobClient};
use hatchery_proto::client::{CallError, FleetClient, TokenCall};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    clock,
    history::{History, lock},
    network::Wires,
    plan::{AGENTS, PEOPLE, is_quiet},
};

/// Jobs of a run.
const JOBS: usize = 5;
/// One job in so many has a model of several pieces.
const LARGE_EVERY: usize = 3;
/// One job in so many has replicas of all of a checkpoint, and not of its weights in bf16 alone.
const WHOLE_EVERY: usize = 2;
/// When they are submitted, in milliseconds from when the fleet is put together.
const SUBMITTED_WITHIN_MS: u64 = 16_000;
/// Steps of a job.
const STEPS: (u64, u64) = (15, 60);
const CHECKPOINT_EVERY: u64 = 8;
/// How long a person waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest pause before a person tries again, in milliseconds.
const PAUSE_MS_MAX: u64 = 600;

/// What people share with the simulation.
#[derive(Clone, Debug)]
pub(crate) struct People {
    pub(crate) seed: u64,
    pub(crate) address: String,
    /// The folder with the operator's credentials.
    pub(crate) client: PathBuf,
    /// A folder of their own.
    pub(crate) folder: PathBuf,
    /// Join strings for the agents, as they are handed from person to person.
    pub(crate) joins: Arc<Mutex<[Option<JoinString>; AGENTS]>>,
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) are_done: Arc<AtomicBool>,
}

impl People {
    pub(crate) async fn act(self) -> Result<()> {
        clock::enter(PEOPLE);
        let mut random = SmallRng::seed_from_u64(self.seed ^ 0x9e3e);
        let mut credentials = loop {
            match Credentials::load(&self.client) {
                Ok(credentials) => break credentials,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        credentials.addresses = vec![self.address.clone()];
        let fleet = persist(|| FleetClient::connect_over(Arc::new(Wires), &credentials)).await?;
        for number in 0..AGENTS {
            let call = TokenCall { scope: Scope::Agent, name: None, labels: Labels::new(), valid: None };
            let (text, _) = persist(|| fleet.create_token(&call)).await?;
            lock(&self.joins)[number] = Some(text.parse()?);
        }
        let dataset = self.dataset(&fleet, &credentials).await?;
        let mut jobs = JoinSet::new();
        for number in 0..JOBS {
            let spec = spec(number, dataset, random.random_range(STEPS.0..=STEPS.1))?;
            let submission = Submission {
                seed: self.seed,
                request: RequestId::random(),
                spec,
                fleet: fleet.clone(),
                random: SmallRng::seed_from_u64(random.random()),
                history: Arc::clone(&self.history),
            };
            jobs.spawn_local(submission.see_through());
        }
        while let Some(seen) = jobs.join_next().await {
            seen??;
        }
        self.are_done.store(true, Ordering::Relaxed);
        std::future::pending().await
    }

    async fn dataset(&self, fleet: &FleetClient, credentials: &Credentials) -> Result<DatasetId> {
        let limits = BlobLimits { free_bytes_min: 0, ..BlobLimits::default() };
        let store = BlobStore::open(&self.folder, limits)?;
        let text = b"to be or not to be, that is the question\n".repeat(50);
        let blob = store.put_bytes(&text)?;
        let blobs = persist(|| BlobClient::connect_over(Arc::new(Wires), credentials)).await?;
        blobs.put(&[blob], &store, |_| {}).await.context("nothing goes wrong at the start")?;
        let file = DatasetFile { path: "hamlet.txt".into(), blob, size_bytes: text.len() as u64 };
        let manifest = DatasetManifest::new(name("hamlet")?, vec![file])?;
        Ok(persist(|| fleet.create_dataset(&manifest)).await?.id)
    }
}

/// One person with one job.
struct Submission {
    seed: u64,
    request: RequestId,
    spec: JobSpec,
    fleet: FleetClient,
    random: SmallRng,
    history: Arc<Mutex<History>>,
}

impl Submission {
    async fn see_through(mut self) -> Result<()> {
        self.pause(SUBMITTED_WITHIN_MS).await;
        let job = if self.random.random_bool(0.4) {
            let (one, other) = tokio::join!(self.submit(), self.submit());
            other?;
            one?
        } else {
            self.submit().await?
        };
        if self.random.random_bool(0.3) {
            self.pause(6_000).await;
            self.submit_another_body().await?;
        }
        if self.random.random_bool(0.2) {
            self.pause(8_000).await;
            let job = job.to_string();
            unless_ended(persist(|| self.fleet.cancel(&job)).await)?;
        }
        if !is_quiet(self.seed) {
            self.control(&job.to_string()).await?;
        }
        if self.random.random_bool(0.4) {
            self.pause(15_000).await;
            self.submit().await?;
        }
        Ok(())
    }

    /// Does with the job what people do who change their minds.
    async fn control(&mut self, job: &str) -> Result<()> {
        if self.random.random_bool(0.3) {
            self.pause(8_000).await;
            unless_ended(persist(|| self.fleet.pause(job)).await)?;
            self.pause(4_000).await;
            unless_ended(persist(|| self.fleet.resume(job)).await)?;
        }
        if self.random.random_bool(0.2) {
            self.pause(6_000).await;
            unless_ended(persist(|| self.fleet.requeue(job)).await)?;
        }
        if self.random.random_bool(0.2) {
            let priority = Priority::new(self.random.random_range(0..=100))?;
            unless_ended(persist(|| self.fleet.set_priority(job, priority)).await)?;
        }
        if self.random.random_bool(0.2) {
            self.pause(6_000).await;
            let nodes = persist(|| self.fleet.nodes()).await?;
            let Some(node) = nodes.get(self.random.random_range(0..AGENTS)) else { return Ok(()) };
            let (name, drain) = (node.name.as_str(), self.random.random_bool(0.7));
            let mode = if drain { NodeMode::Draining } else { NodeMode::Cordoned };
            persist(|| self.fleet.set_node_mode(name, mode)).await?;
            self.pause(5_000).await;
            persist(|| self.fleet.set_node_mode(name, NodeMode::Open)).await?;
        }
        Ok(())
    }

    async fn submit(&self) -> Result<JobId> {
        let (job, duplicate) = persist(|| self.fleet.submit(self.request, &self.spec)).await?;
        lock(&self.history).acknowledged(self.request, job.id, duplicate);
        Ok(job.id)
    }

    async fn submit_another_body(&self) -> Result<()> {
        let mut other = self.spec.clone();
        other.name = name("another")?;
        match persist(|| self.fleet.submit(self.request, &other)).await {
            Err(CallError::Refused(_)) => lock(&self.history).conflicts_refused += 1,
            Ok((job, _)) => {
                let text =
                    format!("I2: another body was taken under the same request as job {}", job.id.short());
                lock(&self.history).problem(text);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn pause(&mut self, ms_max: u64) {
        sleep(Duration::from_millis(self.random.random_range(0..ms_max))).await;
    }
}

/// Calls again and again until there is an answer that another call would not change.
async fn persist<T, F: Future<Output = Result<T, CallError>>>(call: impl Fn() -> F) -> Result<T, CallError> {
    loop {
        match timeout(PATIENCE, call()).await {
            Err(_)
            | Ok(Err(
                CallError::Unreachable(_) | CallError::Down(_) | CallError::Full(_) | CallError::Failed(_),
            )) => {}
            Ok(answer) => return answer,
        }
        sleep(Duration::from_millis(rand::random_range(1..PAUSE_MS_MAX))).await;
    }
}

/// What is refused came too late: the job has ended, or is about to.
fn unless_ended<T>(answer: Result<T, CallError>) -> Result<()> {
    match answer {
        Ok(_) | Err(CallError::Refused(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn spec(number: usize, dataset: DatasetId, steps: u64) -> Result<JobSpec> {
    let train = RawTrainSpec { steps, checkpoint_every: CHECKPOINT_EVERY, ..RawTrainSpec::default() };
    // Some are so large that their pieces go from node to node.
    let n_embd = if number.is_multiple_of(LARGE_EVERY) { 64 } else { 8 };
    let weights = if number.is_multiple_of(WHOLE_EVERY) { ReplicaWeights::F32 } else { ReplicaWeights::Bf16 };
    let model = RawModelConfig {
        n_layer: 1,
        n_embd,
        n_head: 2,
        mlp_internal_dim_multiplier: 2,
        ..RawModelConfig::default()
    };
    let (model, train) = (ModelConfig::new(model)?, TrainSpec::new(train)?);
    let replicate = ReplicaPolicy { weights, ..ReplicaPolicy::default() };
    Ok(JobSpec { replicate, ..JobSpec::new(name(&format!("job-{number}"))?, dataset, model, train) })
}

fn name(text: &str) -> Result<Name> {
    Ok(Name::new("name", text)?)
}
