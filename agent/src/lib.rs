//! The agent: the process on a machine that brings it into the fleet. It says what the machine is and has, runs
//! trainers under a lease, holds replicas of checkpoints, and answers from them.
//!
//! ```text
//! coordinator <-- session --> agent (the loop) -- steps --> attempts   -> trainer processes, deliveries
//!                                 ^                     `-> replicas   -> fetches, self-tests
//!                                 `---- updates -----------'
//! ```
//!
//! | file | its reason to change |
//! |---|---|
//! | `agent` | the order in which things are looked at |
//! | `reconcile`, `lease` | what follows from wish, state and time; pure |
//! | `session/` | how the coordinator is reached |
//! | `attempts/` | the life of attempts and their checkpoints |
//! | `replicas/` | the checkpoints and datasets of this node, and how they come |
//! | `inference/` | answers, on the processor and on a GPU |
//! | `peers/` | what is fetched from other nodes, and served to them |
//! | `trainer/` | the trainer's processes |
//! | `machine/` | what the machine is, has and can do, and when it is its owner's |
//! | `platform`, `host` | what of the machine a simulation replaces, and the real one |

mod agent;
mod attempts;
mod files;
mod host;
mod inference;
pub mod lease;
mod machine;
mod peers;
mod platform;
pub mod reconcile;
mod replicas;
mod session;
pub mod settings;
pub mod trainer;

use std::{collections::BTreeSet, future::Future, path::Path, sync::Arc, time::Duration};

use hatchery_common::{
    blob::{BlobError, BlobLimits, BlobStore},
    durable::{FileError, FolderLock, LockError, create_folder},
    field::FieldError,
    id::Name,
    node::{Inventory, TrainerState},
    tls::{CREDENTIALS_FILE, Credentials, JoinString, TlsError},
};
use hatchery_proto::client::CallError;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    agent::{Agent, Inbox},
    attempts::{Attempts, attempt::Context, delivery::QueueLimits},
    inference::{Inference, dispatch::DispatchQueue, supervisor::Supervisor},
    machine::{
        calibration::{CalibrationCache, Calibrator},
        cpu_partition,
        gpu_guard::Gpus,
        owner_watch::OwnerWatch,
    },
    peers::Peers,
    replicas::{
        Replicas,
        active::Active,
        corpora::Corpora,
        fetch::Fetcher,
        maker::ReplicaMaker,
        models::Models,
        repair,
        self_test::SelfTester,
        store::{CheckpointStore, CheckpointStoreError},
    },
    session::{SessionLoop, coordinator::Coordinator},
};
pub use host::Host;
pub use machine::availability::{AvailabilitySettings, Hours, HoursError, Judgement, Usage};
pub use peers::PeerSettings;
pub use platform::{Platform, Trainer};
pub use session::backoff;
pub use settings::AgentSettings;

/// Updates of one kind that may wait for the loop.
const UPDATES_MAX: usize = 1024;
/// How often a missing trainer is looked for.
const FIND_TRAINER_EVERY: Duration = Duration::from_mins(1);
const BLOBS_FOLDER: &str = "blobs";
const CHECKPOINTS_FOLDER: &str = "checkpoints";
const CORPORA_FOLDER: &str = "corpora";
const ATTEMPTS_FOLDER: &str = "attempts";

/// Why an agent cannot start or join.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A setting is wrong.
    #[error("invalid agent setting: {0}")]
    Settings(#[from] FieldError),
    /// The state folder is in use, or cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file or folder cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The blobs kept here cannot be used.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Credentials are damaged, or of another kind.
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot join: {0}")]
    Join(#[from] CallError),
}

impl From<CheckpointStoreError> for AgentError {
    fn from(error: CheckpointStoreError) -> Self {
        match error {
            CheckpointStoreError::Blob(error) => error.into(),
            CheckpointStoreError::File(error) => error.into(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Joined {
    /// The credentials, saved in the state folder too.
    pub credentials: Credentials,
    /// The node's name in the fleet.
    pub name: Name,
}

/// Makes this machine a node of the fleet that `join` belongs to, and saves the credentials in the state folder,
/// replacing any that are there. The string is used up.
pub async fn join(join: &JoinString, settings: &AgentSettings) -> Result<Joined, AgentError> {
    join_on(&this_machine(settings), join, settings).await
}

/// The same on another platform than this machine.
pub async fn join_on(
    platform: &dyn Platform,
    join: &JoinString,
    settings: &AgentSettings,
) -> Result<Joined, AgentError> {
    settings.check()?;
    create_folder(&settings.state)?;
    let _lock = FolderLock::acquire(&settings.state)?;
    let (credentials, name, _) =
        hatchery_net::join_over(platform.network(), join, &settings.wished_name(), &settings.labels).await?;
    credentials.save(&settings.state)?;
    Ok(Joined { credentials, name })
}

/// The credentials in the state folder; None if the machine has not joined.
pub fn load_credentials(settings: &AgentSettings) -> Result<Option<Credentials>, AgentError> {
    if !settings.state.join(CREDENTIALS_FILE).exists() {
        return Ok(None);
    }
    Ok(Some(Credentials::load(&settings.state)?))
}

/// What this machine is and has, as the coordinator would be told; speeds only where they were measured before.
pub async fn inventory(settings: &AgentSettings) -> Inventory {
    look(&this_machine(settings), settings).await
}

fn this_machine(settings: &AgentSettings) -> Host {
    Host::new(settings.trainer_path())
}

/// Runs the agent until `shutdown`; then trainers write a last checkpoint, which is delivered, and the coordinator is
/// told goodbye, within [`LEAVE_WITHIN_SECS`]. Errors come only from the start: a coordinator that is away is waited
/// for, forever.
pub async fn run(
    settings: AgentSettings,
    credentials: Credentials,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AgentError> {
    run_on(Arc::new(this_machine(&settings)), settings, credentials, shutdown).await
}

/// The same on another platform than this machine.
pub async fn run_on(
    platform: Arc<dyn Platform>,
    settings: AgentSettings,
    credentials: Credentials,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AgentError> {
    settings.check()?;
    create_folder(&settings.state)?;
    let _lock = FolderLock::acquire(&settings.state)?;
    let (session_sender, session) = mpsc::channel(UPDATES_MAX);
    let (attempt_updates, attempts) = mpsc::channel(UPDATES_MAX);
    let (checkpoint_updates, checkpoints) = mpsc::channel(UPDATES_MAX);
    let (results, measured) = mpsc::channel(UPDATES_MAX);
    let output_grew = Arc::new(Notify::new());
    let (clients, coordinator) = Coordinator::new();

    let folder = |name: &str| -> Result<_, FileError> {
        let path = settings.state.join(name);
        create_folder(&path)?;
        Ok(path)
    };
    let quota_bytes = (settings.blob_bytes_max > 0).then_some(settings.blob_bytes_max);
    let limits = BlobLimits { quota_bytes, free_bytes_min: settings.free_disk_bytes_min };
    let blobs = BlobStore::open(&folder(BLOBS_FOLDER)?, limits)?;
    let store = CheckpointStore::open(&folder(CHECKPOINTS_FOLDER)?, blobs)?;
    let peers = Peers::begin(&platform, &settings.peers, store.blobs(), &credentials);
    let fetcher = Fetcher::new(store.clone(), coordinator.clone(), peers.clone());
    let corpora = Corpora::open(&folder(CORPORA_FOLDER)?, fetcher.clone(), settings.free_disk_bytes_min)?;
    let models = Arc::new(Models::new(settings.models_loaded_max as usize));
    let self_tester = SelfTester::new();
    let gpus = Gpus::default();
    let context = Context {
        platform: Arc::clone(&platform),
        fetcher: fetcher.clone(),
        corpora,
        cpu_threads: 0,
        queue_limits: QueueLimits {
            free_disk_bytes_min: settings.free_disk_bytes_min,
            undelivered_bytes_max: settings.undelivered_bytes_max,
        },
        self_tester: self_tester.clone(),
        gpus: gpus.clone(),
        output_grew: Arc::clone(&output_grew),
    };
    let attempts_folder = folder(ATTEMPTS_FOLDER)?;
    let mut table = Attempts::open(&attempts_folder, context, attempt_updates)
        .map_err(|error| FileError::new("read", &attempts_folder, error))?;
    let (wished, wished_receiver) = watch::channel(BTreeSet::new());
    let _restocking = AbortOnDropHandle::new(tokio::spawn(repair::run(fetcher.clone(), wished_receiver)));
    let maker = ReplicaMaker { fetcher, models: Arc::clone(&models), self_tester };
    let replicas = Replicas::new(maker, Active::open(&settings.state), checkpoint_updates, wished);
    let generations_at_once = settings.generations_at_once as usize;
    let queue = DispatchQueue::new(generations_at_once);
    let inference = Inference::new(store, models, queue.clone());

    // Nothing starts on a device on which a trainer of an earlier agent still runs.
    let mut shutdown = std::pin::pin!(shutdown);
    let seen = tokio::select! {
        ((), seen) = async { tokio::join!(end_orphans(&*platform, &table), look(&*platform, &settings)) } => seen,
        () = &mut shutdown => return Ok(()),
    };
    let cpu_threads = cpu_partition::threads(settings.cpu_threads, settings.cpu_trainers, &seen);
    table.use_cpu_threads(cpu_threads);
    let calibrator = Calibrator::new(
        Arc::clone(&platform),
        cpu_threads,
        CalibrationCache::open(&settings.state, platform.trainer(), cpu_threads),
        results,
        gpus.clone(),
    );
    let (inventory, inventory_receiver) = watch::channel(seen);
    let (inventory_updates, inventories) = mpsc::channel(1);
    let finder =
        find_trainer(Arc::clone(&platform), settings.clone(), inventory_receiver.clone(), inventory_updates);
    let _finder = AbortOnDropHandle::new(tokio::spawn(finder));
    let watcher = OwnerWatch::begin(Arc::clone(&platform), settings.availability.clone()).await;
    let (shown, away) = watch::channel(watcher.away());
    let _watcher = AbortOnDropHandle::new(tokio::spawn(watcher.run(shown)));
    let answerer = Supervisor::new(queue, gpus.clone(), Arc::clone(&platform));
    let _answerer = AbortOnDropHandle::new(tokio::spawn(answerer.run()));
    let farewell = CancellationToken::new();
    let supervisor = SessionLoop {
        network: platform.network(),
        credentials,
        state: settings.state.clone(),
        inventory: inventory_receiver,
        clients,
        events: session_sender,
        leaving: farewell.clone(),
        renewed_at: None,
        lease: Duration::MAX,
        peers: peers.clone(),
    };
    let _keeper = AbortOnDropHandle::new(tokio::spawn(supervisor.run()));
    let mut agent = Agent::new(settings, table, replicas, inference, calibrator, inventory, farewell);
    agent.peers = peers;
    agent.gpus = gpus;
    agent
        .run(Inbox { session, attempts, checkpoints, inventories, measured, output_grew, away }, shutdown)
        .await;
    Ok(())
}

/// Longest that [`run`] takes after `shutdown`, in seconds, the goodbye itself left out.
pub const LEAVE_WITHIN_SECS: u64 = agent::LEAVE_WITHIN.as_secs();

async fn end_orphans(platform: &dyn Platform, attempts: &Attempts) {
    let folders = attempts.folders();
    futures::future::join_all(folders.iter().map(|folder| platform.end_orphan(folder))).await;
}

/// Looks again now and then for as long as there is no trainer that runs: somebody may be installing it.
async fn find_trainer(
    platform: Arc<dyn Platform>,
    settings: AgentSettings,
    known: watch::Receiver<Inventory>,
    found: mpsc::Sender<Inventory>,
) {
    loop {
        tokio::time::sleep(FIND_TRAINER_EVERY).await;
        if matches!(known.borrow().trainer, TrainerState::Ready { .. }) {
            return;
        }
        let seen = look(&*platform, &settings).await;
        if matches!(seen.trainer, TrainerState::Ready { .. }) && found.send(seen).await.is_err() {
            return;
        }
    }
}

async fn look(platform: &dyn Platform, settings: &AgentSettings) -> Inventory {
    // The state folder may not be there yet; its file system is that of the nearest folder above it.
    let existing = settings.state.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let mut inventory = platform.look(existing).await;
    cpu_partition::divide(settings.cpu_trainers, &mut inventory);
    let cpu_threads = cpu_partition::threads(settings.cpu_threads, settings.cpu_trainers, &inventory);
    CalibrationCache::open(&settings.state, platform.trainer(), cpu_threads).fill(&mut inventory);
    if settings.availability.looks() {
        inventory.notes.extend(platform.usage(&settings.availability).await.problems);
    }
    inventory
}
