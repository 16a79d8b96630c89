//! What `cargo xtask bench fanout` needs of a fleet and no shipped binary does: a checkpoint that nobody has trained,
//! and a session whose round trips are told.
//!
//! | command | what it does |
//! |---|---|
//! | `plant` | joins as an agent, takes a job, commits a checkpoint of random bytes, and leaves the fleet |
//! | `probe` | joins as an agent, and reports again and again; prints the milliseconds to each receipt until stdin ends |

use std::{
    io::{Read as _, Write as _, stdin, stdout},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use futures::StreamExt as _;
use hatchery_bdh::random_at;
use hatchery_common::{
    blob::{BlobLimits, BlobStore},
    checkpoint::{CheckpointFile, CheckpointManifest, MODEL_FILE},
    dataset::{DatasetFile, DatasetManifest},
    device::Device,
    id::{BlobId, Name, RequestId},
    model::{ModelConfig, RawModelConfig},
    node::{Inventory, NodeDevice, TrainerState},
    recipe::{JobSpec, Labels, NodeSelector, RawTrainSpec, ReplicaPolicy, TrainSpec},
    session::{AgentMessage, AssignedAttempt, AttemptPhase, AttemptReport, CoordinatorMessage, Report},
    tls::{Credentials, JoinString},
    trainer::{Calibration, Ending},
};
use hatchery_fake_trainer::{metrics, noise, weights};
use hatchery_net::{Connect, transfer::BlobClient};
use hatchery_proto::client::{AgentsClient, Answers, FleetClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Optimizer steps of the planted job.
const STEPS: u64 = 10;
/// The deviation of weights that nobody has trained.
const DEVIATION: f64 = 0.02;
/// A receipt that takes longer is a lost session.
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(20);

/// An agent that trains and fetches nothing
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put a checkpoint into a fleet, and print its id and size as JSON
    Plant {
        /// The coordinator's `HATCHERY_HOME`
        #[arg(long)]
        home: PathBuf,
        /// A join string for a machine
        #[arg(long)]
        join: String,
        /// Size of the checkpoint, nearly all of it the optimizer's file
        #[arg(long)]
        megabytes: u64,
        /// Of all its bytes
        #[arg(long)]
        seed: u64,
    },
    /// Report every so often, and print how many milliseconds each receipt took
    Probe {
        /// A join string for a machine
        #[arg(long)]
        join: String,
        /// Between reports
        #[arg(long, default_value_t = 100)]
        every_ms: u64,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Plant { home, join, megabytes, seed } => {
            Box::pin(plant(&home, &join, megabytes, seed)).await
        }
        Command::Probe { join, every_ms } => probe(&join, Duration::from_millis(every_ms)).await,
    }
}

async fn plant(home: &std::path::Path, join: &str, megabytes: u64, seed: u64) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let store = BlobStore::open(scratch.path(), BlobLimits { free_bytes_min: 0, ..BlobLimits::default() })?;
    let operator = Credentials::load(&home.join("client"))?;
    let fleet = FleetClient::connect(&operator).await?;
    let text = format!("nothing to learn, {seed}\n").repeat(100).into_bytes();
    let blob = store.put_bytes(&text)?;
    BlobClient::connect(&operator).await?.put(&[blob], &store, |_| {}).await?;
    let file = DatasetFile { path: "nothing.txt".into(), blob, size_bytes: text.len() as u64 };
    let dataset = fleet.create_dataset(&DatasetManifest::new(name("nothing"), vec![file])?).await?.id;

    let model = model()?;
    let train = RawTrainSpec { steps: STEPS, checkpoint_every: STEPS, ..RawTrainSpec::default() };
    // Nothing is distributed before it is pushed.
    let replicate = ReplicaPolicy { to: NodeSelector::None, ..ReplicaPolicy::default() };
    let spec = JobSpec {
        replicate,
        ..JobSpec::new(name("planted"), dataset, model.clone(), TrainSpec::new(train)?)
    };
    let mut planter = StandIn::join(join, "planter", inventory(true)).await?;
    planter.report(vec![]).await?;
    let (job, _) = fleet.submit(RequestId::random(), &spec).await?;
    let attempt = planter.attempt().await?;
    let contents: [(&str, Vec<u8>); 4] = [
        (CheckpointManifest::FILES[0], serde_json::to_vec(&model)?),
        (MODEL_FILE, random_weights(&model, spec.train.raw().block, seed)),
        (CheckpointManifest::FILES[2], noise(megabytes * 1_000_000, seed)),
        (CheckpointManifest::FILES[3], b"no cursor".to_vec()),
    ];
    let files = contents.into_iter().map(|(name, bytes)| {
        let file = CheckpointFile {
            name: name.into(),
            blob: store.put_bytes(&bytes)?,
            size_bytes: bytes.len() as u64,
        };
        anyhow::Ok(file)
    });
    let manifest = CheckpointManifest {
        job: job.id,
        epoch: attempt.id.epoch,
        step: STEPS,
        parent: None,
        dataset,
        model,
        block: spec.train.raw().block,
        metrics: metrics(),
        files: files.collect::<Result<_>>()?,
    };
    let blobs: Vec<BlobId> = manifest.files.iter().map(|file| file.blob).collect();
    BlobClient::connect(&planter.credentials).await?.put(&blobs, &store, |_| {}).await?;
    let checkpoint = planter.client.commit_checkpoint(&manifest, None).await?;
    planter.report(vec![completed(&attempt)]).await?;
    drop(planter);
    fleet.remove_node("planter").await?;
    let told = serde_json::json!({ "checkpoint": checkpoint, "bytes": manifest.size_bytes() });
    writeln!(stdout(), "{told}").context("cannot say what was planted")
}

async fn probe(join: &str, every: Duration) -> Result<()> {
    let mut probe = StandIn::join(join, "probe", inventory(false)).await?;
    let (ends, mut ended) = mpsc::channel::<()>(1);
    thread::spawn(move || {
        // However stdin ends, it has ended.
        let _ended = stdin().read_to_end(&mut Vec::new());
        drop(ends);
    });
    let mut ticks = tokio::time::interval(every);
    loop {
        tokio::select! {
            _ = ended.recv() => return Ok(()),
            _ = ticks.tick() => {
                let sent = Instant::now();
                probe.report(vec![]).await?;
                writeln!(stdout(), "{:.3}", sent.elapsed().as_secs_f64() * 1000.0)?;
                stdout().flush()?;
            }
        }
    }
}

/// Joined, and with a session.
struct StandIn {
    credentials: Credentials,
    client: AgentsClient,
    outgoing: mpsc::Sender<AgentMessage>,
    incoming: Answers<CoordinatorMessage>,
    sequence: u64,
    /// The newest attempt in an assignment.
    attempt: Option<AssignedAttempt>,
}

impl StandIn {
    async fn join(join: &str, called: &str, inventory: Inventory) -> Result<Self> {
        let string: JoinString = join.parse()?;
        let (credentials, _, _) = hatchery_net::join(&string, &name(called), &Labels::new()).await?;
        let client = AgentsClient::connect(&credentials).await?;
        let (outgoing, messages) = mpsc::channel(16);
        outgoing.send(AgentMessage::Hello(Box::new(inventory))).await?;
        let incoming = client.session(ReceiverStream::new(messages)).await?;
        Ok(Self { credentials, client, outgoing, incoming, sequence: 0, attempt: None })
    }

    async fn next(&mut self) -> Result<CoordinatorMessage> {
        let next = tokio::time::timeout(RECEIPT_TIMEOUT, self.incoming.next());
        let message =
            next.await.context("the coordinator says nothing")?.context("the session has ended")??;
        if let CoordinatorMessage::Assignment(assignment) = &message {
            self.attempt = assignment.attempts.first().cloned();
        }
        Ok(message)
    }

    /// Reports, and waits for the receipt.
    async fn report(&mut self, attempts: Vec<AttemptReport>) -> Result<()> {
        self.sequence += 1;
        let sequence = self.sequence;
        let report = Report { sequence, attempts, ..Report::default() };
        self.outgoing.send(AgentMessage::Report(report)).await?;
        while self.next().await? != (CoordinatorMessage::ReportReceived { sequence }) {}
        Ok(())
    }

    async fn attempt(&mut self) -> Result<AssignedAttempt> {
        while self.attempt.is_none() {
            self.next().await?;
        }
        self.attempt.clone().context("there is one")
    }
}

fn name(text: &str) -> Name {
    Name::from_lossy(text)
}

fn completed(attempt: &AssignedAttempt) -> AttemptReport {
    AttemptReport {
        id: attempt.id,
        phase: AttemptPhase::Ended { ending: Ending::Completed, last_output: String::new() },
        progress: None,
        validation: None,
        running_on: None,
    }
}

fn inventory(trains: bool) -> Inventory {
    let calibration =
        Calibration { device: Device::CPU, steps_per_sec: 10.0, flops_per_sec: 1e10, version: 1 };
    let device = NodeDevice {
        device: Device::CPU,
        name: "none that is used".into(),
        memory_bytes: 8 << 30,
        bf16: false,
        driver: None,
        power_watts_max: None,
        calibration: Some(calibration),
    };
    let trainer = TrainerState::Ready { version: "0".into(), libtorch: "none".into() };
    Inventory {
        hostname: "stand-in".into(),
        cores: 1,
        memory_bytes: 8 << 30,
        trainer,
        devices: if trains { vec![device] } else { vec![] },
        ..Inventory::default()
    }
}

/// A small shape, so that a node's self-test takes nothing from the others' transfers.
fn model() -> Result<ModelConfig> {
    let raw = RawModelConfig {
        n_layer: 1,
        n_embd: 32,
        n_head: 4,
        mlp_internal_dim_multiplier: 8,
        ..RawModelConfig::default()
    };
    Ok(ModelConfig::new(raw)?)
}

/// Uniform: all that counts is that no two checkpoints are alike and that the model answers.
fn random_weights(model: &ModelConfig, block: u32, seed: u64) -> Vec<u8> {
    let mut draws = 0..;
    weights(model, block, |_| {
        let uniform = random_at(seed, draws.next().unwrap_or_default());
        ((uniform - 0.5) * 12_f64.sqrt() * DEVIATION) as f32
    })
}
