//! A coordinator that schedules nothing: it tells an agent what the test says, and notes what the agent says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use hatchery_common::{
    blob::{BlobLimits, BlobStore},
    checkpoint::CheckpointManifest,
    dataset::{DatasetFile, DatasetManifest},
    digest::Digest,
    id::{CheckpointId, DatasetId, JobId, Name, NodeId, RequestId},
    node::Inventory,
    self_test::SelfTest,
    session::{
        AgentMessage, AnswerPart, Assignment, AttemptReport, CoordinatorMessage, ReplicaState, Report,
    },
    tls::{Authority, Credentials, Identity, Role, install_provider, server_config},
};
use hatchery_net::{
    transfer::BlobService,
    transport::{TlsIncoming, server_builder},
};
use hatchery_proto::{
    convert, services,
    v1::{self, agents_server::Agents},
};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::PATIENCE;

static FLEET: LazyLock<Authority> = LazyLock::new(|| {
    install_provider();
    let folder = tempfile::tempdir().unwrap();
    Authority::create_or_load(folder.path()).unwrap()
});

/// What was said, and what is to be said.
#[derive(Default)]
pub struct Notes {
    pub hellos: Vec<Inventory>,
    pub inventories: Vec<Inventory>,
    pub report: Report,
    pub commits: Vec<CheckpointManifest>,
    pub output: Vec<u8>,
    pub parts: Vec<AnswerPart>,
    /// The same by what was asked.
    pub answers: BTreeMap<RequestId, Vec<AnswerPart>>,
    pub goodbyes: usize,
    /// What checkpoints are said to have answered where they were made.
    pub self_tests: BTreeMap<CheckpointId, SelfTest>,
    datasets: BTreeMap<DatasetId, DatasetManifest>,
}

impl Notes {
    pub fn attempt(&self, index: usize) -> Option<&AttemptReport> {
        self.report.attempts.get(index)
    }

    pub fn replica(&self, id: CheckpointId) -> Option<&ReplicaState> {
        self.report.replicas.iter().find(|replica| replica.checkpoint == id).map(|replica| &replica.state)
    }
}

/// Shared by all calls, and kept over restarts of the server.
struct State {
    notes: watch::Sender<Notes>,
    assignment: watch::Sender<Assignment>,
    session: Mutex<Option<mpsc::Sender<CoordinatorMessage>>>,
    /// Jobs whose specs have a key that only newer agents know.
    newer: Mutex<BTreeSet<JobId>>,
    /// Whether reports are answered.
    answers: AtomicBool,
    /// Whether checkpoints are refused, as of an old epoch.
    fences: AtomicBool,
}

#[derive(Clone)]
struct AgentsService(Arc<State>);

pub struct Coordinator {
    state: Arc<State>,
    pub blobs: BlobStore,
    address: SocketAddr,
    /// Of its own, so that all of its connections end with it.
    server: Option<Runtime>,
    _folder: tempfile::TempDir,
}

impl Coordinator {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let limits = BlobLimits { quota_bytes: None, free_bytes_min: 0 };
        let blobs = BlobStore::open(&folder.path().join("blobs"), limits).unwrap();
        let lease = Duration::from_secs(10);
        let state = State {
            notes: watch::channel(Notes::default()).0,
            assignment: watch::channel(Assignment { lease, ..Assignment::default() }).0,
            session: Mutex::default(),
            newer: Mutex::default(),
            answers: AtomicBool::new(true),
            fences: AtomicBool::new(false),
        };
        let address = "127.0.0.1:0".parse().unwrap();
        let mut coordinator = Self { state: Arc::new(state), blobs, address, server: None, _folder: folder };
        coordinator.come_up().await;
        coordinator
    }

    /// Listens, at the same address as before.
    pub async fn come_up(&mut self) {
        let config = server_config(&FLEET.issue_server(&[]).unwrap(), FLEET.certificate_pem()).unwrap();
        let runtime = Runtime::new().unwrap();
        let listener = TcpListener::bind(self.address).await.unwrap().into_std().unwrap();
        self.address = listener.local_addr().unwrap();
        let server = server_builder()
            .add_service(services::agents(AgentsService(Arc::clone(&self.state))))
            .add_service(services::blobs(BlobService::new(self.blobs.clone())));
        runtime.spawn(async move {
            let incoming = TlsIncoming::new(TcpListener::from_std(listener).unwrap(), config);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        self.server = Some(runtime);
    }

    /// Is gone, as after a SIGKILL.
    pub fn go_down(&mut self) {
        *lock(&self.state.session) = None;
        self.server.take().unwrap().shutdown_background();
    }

    pub fn credentials(&self) -> Credentials {
        let identity = Identity::new(Role::Agent(NodeId::from_bytes([7; 16])));
        let keyed = FLEET.issue_client_with_key(&identity).unwrap();
        Credentials::new(vec![self.address.to_string()], FLEET.certificate_pem(), keyed)
    }

    /// Registers a dataset of one file.
    pub fn dataset(&self, text: &str) -> DatasetId {
        let blob = self.blobs.put_bytes(text.as_bytes()).unwrap();
        let file = DatasetFile { path: "script".into(), blob, size_bytes: text.len() as u64 };
        let manifest = DatasetManifest::new(Name::from_lossy("script"), vec![file]).unwrap();
        let id = manifest.id();
        self.state.notes.send_modify(|notes| drop(notes.datasets.insert(id, manifest)));
        id
    }

    pub fn assign(&self, change: impl FnOnce(&mut Assignment)) {
        self.state.assignment.send_modify(change);
    }

    /// From now on the specs of a job have a key that this version does not know.
    pub fn make_newer(&self, job: JobId) {
        lock(&self.state.newer).insert(job);
    }

    pub fn note(&self, change: impl FnOnce(&mut Notes)) {
        self.state.notes.send_modify(change);
    }

    pub fn answer_reports(&self, answers: bool) {
        self.state.answers.store(answers, Ordering::Relaxed);
    }

    pub fn fence(&self) {
        self.state.fences.store(true, Ordering::Relaxed);
    }

    pub async fn say(&self, message: CoordinatorMessage) {
        let session = lock(&self.state.session).clone().expect("an agent is connected");
        session.send(message).await.unwrap();
    }

    pub fn notes(&self) -> watch::Ref<'_, Notes> {
        self.state.notes.borrow()
    }

    /// Waits until the agent has said something.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Notes) -> bool) {
        let mut notes = self.state.notes.subscribe();
        let waited = tokio::time::timeout(PATIENCE, notes.wait_for(|notes| holds(notes)))
            .await
            .map(|found| found.is_ok());
        assert_eq!(waited, Ok(true), "in vain: {what}; the last report: {:#?}", self.notes().report);
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AgentsService {
    async fn hear(&self, message: AgentMessage, answers: &mpsc::Sender<CoordinatorMessage>) {
        self.0.notes.send_modify(|notes| match &message {
            AgentMessage::Hello(inventory) => {
                notes.hellos.push((**inventory).clone());
                notes.report = Report::default();
            }
            AgentMessage::Inventory(inventory) => notes.inventories.push((**inventory).clone()),
            AgentMessage::Report(report) => notes.report = report.clone(),
            AgentMessage::LogLines { offset, text, .. } => {
                let known = notes.output.len() as u64;
                assert!(*offset <= known, "output is missing");
                notes.output.extend(text.iter().skip((known - offset) as usize));
            }
            AgentMessage::Generation { request, part } => {
                notes.parts.push(part.clone());
                notes.answers.entry(*request).or_default().push(part.clone());
            }
            AgentMessage::Goodbye => notes.goodbyes += 1,
            // Its blobs have one piece each: nodes exchange none of them.
            AgentMessage::Swarm(_) | AgentMessage::PeerTrouble { .. } => {}
        });
        if let AgentMessage::Report(report) = message
            && self.0.answers.load(Ordering::Relaxed)
        {
            let received = CoordinatorMessage::ReportReceived { sequence: report.sequence };
            // The agent may be gone already.
            answers.send(received).await.unwrap_or(());
        }
    }
}

#[tonic::async_trait]
impl Agents for AgentsService {
    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        Err(Status::permission_denied("nobody joins here"))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        Err(Status::permission_denied("nothing is renewed here"))
    }

    type SessionStream = BoxStream<'static, Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (answers, outgoing) = mpsc::channel(64);
        let welcome = CoordinatorMessage::Welcome {
            name: Name::from_lossy("node"),
            report_every: Duration::from_millis(100),
        };
        answers.send(welcome).await.unwrap();
        *lock(&self.0.session) = Some(answers.clone());
        let (service, mut incoming) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut assignment = service.0.assignment.subscribe();
            assignment.mark_changed();
            loop {
                tokio::select! {
                    message = incoming.message() => match message {
                        Ok(Some(message)) => service.hear(message.try_into().unwrap(), &answers).await,
                        _ => break,
                    },
                    Ok(()) = assignment.changed() => {
                        let newest = assignment.borrow_and_update().clone();
                        // The agent may be gone already.
                        answers.send(CoordinatorMessage::Assignment(newest)).await.unwrap_or(());
                    }
                }
            }
            let mut session = lock(&service.0.session);
            if session.as_ref().is_some_and(|session| session.same_channel(&answers)) {
                *session = None;
            }
        });
        let newer = lock(&self.0.newer).clone();
        let messages = ReceiverStream::new(outgoing).map(move |message| Ok(from_newer(message, &newer)));
        Ok(Response::new(messages.boxed()))
    }

    async fn get_dataset_manifest(
        &self,
        request: Request<v1::GetDatasetManifestRequest>,
    ) -> Result<Response<v1::GetDatasetManifestResponse>, Status> {
        let id: DatasetId = request.into_inner().dataset.parse().unwrap();
        let notes = self.0.notes.borrow();
        let manifest =
            notes.datasets.get(&id).ok_or_else(|| Status::not_found("there is no such dataset"))?;
        Ok(Response::new(v1::GetDatasetManifestResponse {
            manifest: convert::dataset_manifest_bytes(manifest),
        }))
    }

    async fn get_checkpoint_manifest(
        &self,
        request: Request<v1::GetCheckpointManifestRequest>,
    ) -> Result<Response<v1::GetCheckpointManifestResponse>, Status> {
        let id: CheckpointId = request.into_inner().checkpoint.parse().unwrap();
        let notes = self.0.notes.borrow();
        let found = notes.commits.iter().find(|manifest| manifest.id() == id);
        let manifest = found.ok_or_else(|| Status::not_found("there is no such checkpoint"))?;
        let manifest = convert::checkpoint_manifest_bytes(manifest);
        let self_test = notes.self_tests.get(&id).cloned().map(Into::into);
        Ok(Response::new(v1::GetCheckpointManifestResponse { manifest, self_test }))
    }

    async fn offer_checkpoint(
        &self,
        request: Request<v1::OfferCheckpointRequest>,
    ) -> Result<Response<v1::OfferCheckpointResponse>, Status> {
        let v1::OfferCheckpointRequest { epoch, step, .. } = request.into_inner();
        let fences = self.0.fences.load(Ordering::Relaxed);
        let declined = fences.then(|| format!("step {step} of epoch {epoch} is no further"));
        Ok(Response::new(v1::OfferCheckpointResponse { declined }))
    }

    async fn commit_checkpoint(
        &self,
        request: Request<v1::CommitCheckpointRequest>,
    ) -> Result<Response<v1::CommitCheckpointResponse>, Status> {
        if self.0.fences.load(Ordering::Relaxed) {
            return Err(Status::aborted("another attempt runs now"));
        }
        let v1::CommitCheckpointRequest { manifest, self_test } = request.into_inner();
        let (id, manifest) = convert::checkpoint_manifest(&manifest).unwrap();
        self.0.notes.send_modify(|notes| {
            if let Some(self_test) = self_test {
                notes.self_tests.insert(id, self_test.try_into().unwrap());
            }
            if notes.commits.iter().all(|known| known.id() != id) {
                notes.commits.push(manifest);
            }
        });
        Ok(Response::new(v1::CommitCheckpointResponse { checkpoint: id.to_string() }))
    }
}

/// The message as a newer coordinator writes it, whose specs of these jobs use a key of its own.
fn from_newer(message: CoordinatorMessage, jobs: &BTreeSet<JobId>) -> v1::SessionResponse {
    let mut message = v1::SessionResponse::from(message);
    let Some(v1::session_response::Message::Assignment(assignment)) = &mut message.message else {
        return message;
    };
    for attempt in assignment.attempts.iter_mut().filter(|one| jobs.contains(&one.job.parse().unwrap())) {
        let spec = attempt.spec.as_mut().unwrap();
        let mut value: serde_json::Value = serde_json::from_slice(&spec.json).unwrap();
        value["train"]["label_smoothing"] = 0.1.into();
        spec.json = serde_json::to_vec(&value).unwrap();
        spec.digest = Digest::of(&spec.json).as_bytes().to_vec();
    }
    message
}
