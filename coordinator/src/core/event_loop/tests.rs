//! The loop over a store that fails as disks do: before the commit, after it, and for good.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use hatchery_common::{
    access::Scope,
    dataset::{DatasetFile, DatasetManifest},
    device::Device,
    digest::Digest,
    id::{BlobId, CertificateId, Epoch, JobId, Name, NodeId, RequestId},
    model::{ModelConfig, RawModelConfig},
    node::{Inventory, NodeDevice, TrainerState},
    recipe::{JobSpec, Labels, RawTrainSpec, TrainSpec},
    time::Timestamp,
};
use hatchery_scheduler::{
    Cluster, CreateToken, Event, JobPhase, Join, Policy, RegisterDataset, SetInventory, Submit,
};
use tokio::{sync::oneshot, task::JoinHandle};

use super::{EventLoop, LoopError};
use crate::{
    core::{
        handle::{CommandError, Input, LoopHandle, SessionNumber},
        store_thread,
    },
    store::{self, SqliteStore, Store, StoreError},
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// No room; nothing happened.
    Full,
    /// The changes are durable, but the answer is lost.
    AnswerLost,
    /// The disk is broken.
    Broken,
}

/// A real store whose next commits go wrong as told, and that can be held up.
struct Faulty {
    inner: SqliteStore,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    faults: Mutex<VecDeque<Fault>>,
    held: Mutex<bool>,
    released: Condvar,
    commits: Mutex<usize>,
}

impl Control {
    fn fail_next(&self, fault: Fault) {
        self.faults.lock().unwrap().push_back(fault);
    }

    fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.released.notify_all();
    }
}

impl Store for Faulty {
    fn load(&mut self) -> Result<Cluster, StoreError> {
        self.inner.load()
    }

    fn commit(&mut self, events: &[Event]) -> Result<(), StoreError> {
        drop(self.control.released.wait_while(self.control.held.lock().unwrap(), |held| *held).unwrap());
        *self.control.commits.lock().unwrap() += 1;
        let source = || rusqlite::Error::InvalidQuery;
        let path = PathBuf::from("hatchery.db");
        match self.control.faults.lock().unwrap().pop_front() {
            None => self.inner.commit(events),
            Some(Fault::Full) => Err(StoreError::Full { path, source: source() }),
            Some(Fault::Broken) => Err(StoreError::Io { path, source: source() }),
            Some(Fault::AnswerLost) => {
                self.inner.commit(events)?;
                Err(StoreError::Other { path, source: source() })
            }
        }
    }

    fn events(&mut self, after: u64, limit: usize) -> Result<Vec<store::StoredEvent>, StoreError> {
        self.inner.events(after, limit)
    }
}

struct Fixture {
    control: Arc<Control>,
    handle: LoopHandle,
    task: JoinHandle<Result<(), LoopError>>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_with(Duration::from_secs(15)).await
    }

    async fn start_with(lease: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = Arc::new(Control::default());
        let inner = SqliteStore::open(&folder.path().join("hatchery.db")).unwrap();
        let (calls, queue) = store_thread::channel();
        let faulty = Faulty { inner, control: Arc::clone(&control) };
        std::thread::spawn(move || store_thread::answer_all(faulty, queue));
        let (event_loop, handle) = EventLoop::load(calls, lease, Policy::default()).await.unwrap();
        Self { control, handle, task: tokio::spawn(event_loop.run()), _folder: folder }
    }

    fn tokens(&self) -> usize {
        self.handle.snapshot().cluster.tokens.len()
    }
}

fn token(secret: &str) -> CreateToken {
    CreateToken {
        secret: Digest::of(secret.as_bytes()),
        scope: Scope::Agent,
        name: None,
        labels: Labels::new(),
        by: Name::from_lossy("ada"),
        expires_at: Timestamp::now() + Duration::from_hours(1),
    }
}

fn join(secret: &str) -> Join {
    Join {
        secret: Digest::of(secret.as_bytes()),
        certificate: CertificateId::random(),
        node: NodeId::random(),
        name: Name::from_lossy("box"),
        labels: Labels::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_in_words_and_nothing_is_lost_or_shown() {
    let fixture = Fixture::start().await;
    fixture.handle.command(token("before")).await.unwrap();
    fixture.control.fail_next(Fault::Full);
    let error = fixture.handle.command(token("full")).await.unwrap_err();
    assert!(matches!(error, CommandError::DiskFull(_)), "{error:?}");
    assert!(error.to_string().contains("disk is full"), "{error}");
    assert_eq!(fixture.tokens(), 1);
    fixture.handle.command(token("full")).await.unwrap();
    assert_eq!(fixture.tokens(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_though_reported_failed_is_known_afterwards() {
    let fixture = Fixture::start().await;
    fixture.control.fail_next(Fault::AnswerLost);
    let error = fixture.handle.command(token("lost")).await.unwrap_err();
    assert!(matches!(error, CommandError::NotDurable(_)), "{error:?}");
    assert_eq!(fixture.tokens(), 1, "the state is what the store says it is");
    let joined = fixture.handle.command(join("lost")).await.unwrap();
    assert_eq!(joined.scope, Scope::Agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_disk_ends_the_loop() {
    let fixture = Fixture::start().await;
    fixture.control.fail_next(Fault::Broken);
    fixture.handle.command(token("one")).await.unwrap_err();
    let ended = fixture.task.await.unwrap().unwrap_err();
    assert!(matches!(ended, LoopError::Store(StoreError::Io { .. })), "{ended:?}");
    let error = fixture.handle.command(token("two")).await.unwrap_err();
    assert!(matches!(error, CommandError::Stopping), "{error:?}");
}

/// A node with a session, and a job that it has the lease of.
async fn leased_job(handle: &LoopHandle) -> JobId {
    handle.command(token("node")).await.unwrap();
    let certificate = handle.command(join("node")).await.unwrap();
    let node = certificate.node.unwrap();
    let device = NodeDevice {
        device: Device::CPU,
        name: "a processor".into(),
        memory_bytes: 8 << 30,
        bf16: false,
        driver: None,
        power_watts_max: None,
        calibration: None,
    };
    let inventory = Inventory {
        trainer: TrainerState::Ready { version: "1".into(), libtorch: "2".into() },
        memory_bytes: 8 << 30,
        devices: vec![device],
        ..Inventory::default()
    };
    handle.command(SetInventory { node, inventory: Box::new(inventory) }).await.unwrap();
    handle.send(Input::SessionOpened { node, session: SessionNumber(1) }).await.unwrap();
    let (taken, receipt) = oneshot::channel();
    let report = Box::default();
    handle.send(Input::Report { node, session: SessionNumber(1), report, taken }).await.unwrap();
    receipt.await.unwrap();
    let file = DatasetFile { path: "a".into(), blob: BlobId(Digest::of(b"a")), size_bytes: 1 << 20 };
    let manifest = DatasetManifest::new(Name::from_lossy("a"), vec![file]).unwrap();
    let dataset = manifest.id();
    handle.command(RegisterDataset { manifest }).await.unwrap();
    let model = ModelConfig::new(RawModelConfig { n_layer: 1, n_embd: 32, ..Default::default() }).unwrap();
    let train = TrainSpec::new(RawTrainSpec::default()).unwrap();
    let spec = JobSpec::new(Name::from_lossy("a"), dataset, model, train);
    let job = JobId::random();
    let submit = Submit {
        request: RequestId::random(),
        job,
        body: Digest::of(b"a"),
        spec: Box::new(spec),
        submitter: Name::from_lossy("ada"),
    };
    handle.command(submit).await.unwrap();
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_costs_nobody_a_lease() {
    const LEASE: Duration = Duration::from_secs(1);
    let fixture = Fixture::start_with(LEASE).await;
    let job = leased_job(&fixture.handle).await;
    let epoch_and_phase = |handle: &LoopHandle| {
        let job = &handle.snapshot().cluster.jobs[&job];
        (job.epoch, job.phase.clone())
    };
    assert_eq!(epoch_and_phase(&fixture.handle), (Epoch(1), JobPhase::Running));

    fixture.control.hold(true);
    let handle = fixture.handle.clone();
    let hanging = tokio::spawn(async move { handle.command(token("hanging")).await });
    // No event is awaited here: it is time that has to pass.
    tokio::time::sleep(LEASE * 3).await;
    fixture.control.hold(false);
    hanging.await.unwrap().unwrap();
    fixture.handle.command(token("after")).await.unwrap();
    assert_eq!(epoch_and_phase(&fixture.handle), (Epoch(1), JobPhase::Running), "its reports had no ear");

    // Heard by an ear that works, the same silence ends the lease.
    let mut snapshots = fixture.handle.snapshots.clone();
    let over = snapshots.wait_for(|shown| shown.cluster.jobs[&job].phase == JobPhase::Queued);
    drop(tokio::time::timeout(LEASE * 20, over).await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn dialling_without_a_report_keeps_no_lease() {
    const LEASE: Duration = Duration::from_secs(1);
    let fixture = Fixture::start_with(LEASE).await;
    let job = leased_job(&fixture.handle).await;
    let node = fixture.handle.snapshot().cluster.jobs[&job].lease.as_ref().unwrap().node;
    let mut snapshots = fixture.handle.snapshots.clone();
    let over = snapshots.wait_for(|shown| shown.cluster.jobs[&job].phase == JobPhase::Queued);
    let dial = async {
        let mut every = tokio::time::interval(LEASE / 10);
        for number in 2.. {
            every.tick().await;
            let session = SessionNumber(number);
            fixture.handle.send(Input::SessionOpened { node, session }).await.unwrap();
        }
    };
    tokio::select! {
        over = tokio::time::timeout(LEASE * 20, over) => drop(over.unwrap().unwrap()),
        () = dial => unreachable!("it dials for ever"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_arrive_together_share_a_commit_and_are_shown_only_then() {
    const REQUESTS: usize = 200;
    let fixture = Fixture::start().await;
    fixture.control.hold(true);
    let answers: Vec<_> = {
        let mut answers = Vec::new();
        for number in 0..REQUESTS {
            answers.push(fixture.handle.put(token(&number.to_string())).await.unwrap());
        }
        answers
    };
    assert_eq!(fixture.tokens(), 0, "nothing is shown before it is durable");
    fixture.control.hold(false);
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    assert_eq!(fixture.tokens(), REQUESTS);
    let commits = *fixture.control.commits.lock().unwrap();
    assert!(commits <= 4, "{commits} commits");
    fixture.handle.send(Input::Shutdown).await.unwrap();
    fixture.task.await.unwrap().unwrap();
}
