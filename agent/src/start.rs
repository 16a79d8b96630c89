//! The agent's start. First what lies on the disk is opened, so that an error is told at once; then every part is made, once
//! and whole.

use std::{future::Future, path::PathBuf, sync::Arc};

use futures::future::join_all;
use hatchery_common::{
    blob::{BlobLimits, BlobStore},
    durable::{FileError, FolderLock, create_folder},
    node::{Inventory, NodeMetrics},
    tls::Credentials,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    AgentError,
    agent::{Agent, State},
    attempts::{Attempts, attempt::Context, delivery::QueueLimits, folder::AttemptFolder},
    inbox::Inbox,
    inference::{Inference, dispatch::DispatchQueue, supervisor::Supervisor},
    machine::{
        calibration::Calibrator,
        cpu_partition,
        gpu_guard::Gpus,
        metrics,
        owner_watch::OwnerWatch,
        survey::{find_trainer, measured_before, survey},
    },
    peers::Peers,
    platform::Platform,
    replicas::{
        Replicas, active::Active, corpora::Corpora, fetch::Fetcher, maker::ReplicaMaker, models::Models,
        self_test::SelfTester, store::CheckpointStore,
    },
    session::{Session, coordinator::Coordinator},
    settings::AgentSettings,
};

const BLOBS_FOLDER: &str = "blobs";
const CHECKPOINTS_FOLDER: &str = "checkpoints";
const CORPORA_FOLDER: &str = "corpora";
const ATTEMPTS_FOLDER: &str = "attempts";

/// What an agent is made from.
pub(crate) struct Parts {
    platform: Arc<dyn Platform>,
    settings: AgentSettings,
    credentials: Credentials,
    store: CheckpointStore,
    corpora: PathBuf,
    attempts: PathBuf,
    /// What an earlier agent left in `attempts`.
    left: Vec<AttemptFolder>,
    lock: FolderLock,
}

impl Parts {
    /// Opens the state folder, which no other process may use until this is dropped.
    pub(crate) fn open(
        platform: Arc<dyn Platform>,
        settings: AgentSettings,
        credentials: Credentials,
    ) -> Result<Self, AgentError> {
        settings.check()?;
        create_folder(&settings.state)?;
        let lock = FolderLock::acquire(&settings.state)?;
        let folder = |name: &str| -> Result<_, FileError> {
            let path = settings.state.join(name);
            create_folder(&path)?;
            Ok(path)
        };
        let limits = BlobLimits {
            quota_bytes: (settings.blob_bytes_max > 0).then_some(settings.blob_bytes_max),
            free_bytes_min: settings.free_disk_bytes_min,
        };
        let blobs = BlobStore::open(&folder(BLOBS_FOLDER)?, limits)?;
        let store = CheckpointStore::open(&folder(CHECKPOINTS_FOLDER)?, blobs)?;
        let corpora = folder(CORPORA_FOLDER)?;
        Corpora::clear_unfinished(&corpora)?;
        let attempts = folder(ATTEMPTS_FOLDER)?;
        let left =
            AttemptFolder::list(&attempts).map_err(|error| FileError::new("read", &attempts, error))?;
        Ok(Self { platform, settings, credentials, store, corpora, attempts, left, lock })
    }

    /// Starts the agent, once no trainer of an earlier one is left: nothing may start on a device where one still runs.
    pub(crate) async fn start(self) -> Started {
        let orphans = self.left.iter().map(|folder| self.platform.end_orphan(folder.path()));
        let (inventory, _) = tokio::join!(survey(&*self.platform, &self.settings), join_all(orphans));
        let watch = OwnerWatch::new(Arc::clone(&self.platform), self.settings.availability.clone()).await;
        self.assemble(inventory, watch)
    }

    /// Makes every part, and lets those run that run by themselves.
    fn assemble(self, inventory: Inventory, owner_watch: OwnerWatch) -> Started {
        let Self { platform, settings, credentials, store, corpora, attempts, left, lock } = self;
        let (shown, away) = watch::channel(owner_watch.away());
        let (updates, inbox) = Inbox::open(away);
        let (clients, coordinator) = Coordinator::new();
        let peers = Peers::begin(&platform, &settings.peers, store.blobs(), &credentials);
        let fetcher = Fetcher::new(store.clone(), coordinator, peers.clone());
        let models = Arc::new(Models::new(settings.models_loaded_max as usize));
        let (self_tester, gpus) = (SelfTester::new(), Gpus::default());
        let queue = DispatchQueue::new(settings.generations_at_once as usize);
        let calibrations = measured_before(&*platform, &settings, &inventory);
        let context = Context {
            platform: Arc::clone(&platform),
            corpora: Corpora::new(corpora, fetcher.clone(), settings.free_disk_bytes_min),
            fetcher: fetcher.clone(),
            cpu_threads: cpu_partition::threads(settings.cpu_threads, settings.cpu_trainers, &inventory),
            queue_limits: QueueLimits {
                free_disk_bytes_min: settings.free_disk_bytes_min,
                undelivered_bytes_max: settings.undelivered_bytes_max,
            },
            self_tester: self_tester.clone(),
            gpus: gpus.clone(),
            output_grew: updates.output_grew,
        };
        let maker = ReplicaMaker { fetcher, models: Arc::clone(&models), self_tester };
        let (inventory, known) = watch::channel(inventory);
        let farewell = CancellationToken::new();
        let session = Session {
            network: platform.network(),
            credentials,
            state: settings.state.clone(),
            inventory: known.clone(),
            clients,
            events: updates.session,
            leaving: farewell.clone(),
            peers: peers.clone(),
        };
        let finder = find_trainer(Arc::clone(&platform), settings.clone(), known, updates.inventory);
        let (latest, metrics) = watch::channel(NodeMetrics::default());
        let metering = metrics::watch(Arc::clone(&platform), settings.state.clone(), latest);
        let supervisor = Supervisor::new(queue.clone(), gpus.clone(), Arc::clone(&platform));
        let agent = Agent {
            attempts: Attempts::new(attempts, &left, context, updates.attempts),
            replicas: Replicas::start(maker, Active::open(&settings.state), updates.replicas),
            inference: Inference::new(store, models, queue),
            calibrator: Calibrator::new(platform, calibrations, gpus.clone(), updates.measured),
            settings,
            inventory,
            metrics,
            peers,
            gpus,
            farewell,
            state: State::default(),
        };
        let tasks = [
            tokio::spawn(owner_watch.run(shown)),
            tokio::spawn(finder),
            tokio::spawn(metering),
            tokio::spawn(supervisor.run()),
            tokio::spawn(session.run()),
        ];
        Started { agent, inbox, _tasks: tasks.map(AbortOnDropHandle::new), _lock: lock }
    }
}

/// An agent at work.
pub(crate) struct Started {
    agent: Agent,
    inbox: Inbox,
    _tasks: [AbortOnDropHandle<()>; 5],
    /// Dropped last.
    _lock: FolderLock,
}

impl Started {
    /// Runs until `shutdown`, then leaves in good order.
    pub(crate) async fn run(self, shutdown: impl Future<Output = ()>) {
        self.agent.run(self.inbox, shutdown).await;
    }
}
