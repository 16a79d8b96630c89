//! An agent as the coordinator sees it: test code that speaks the wire.

use std::sync::Arc;

use futures::StreamExt as _;
use hatchery_common::{
    access::Scope,
    availability::Away,
    blob::{BlobLimits, BlobStore},
    checkpoint::CheckpointManifest,
    device::Device,
    id::{CheckpointId, NodeId},
    node::{Inventory, NodeDevice, NodeMetrics, TrainerState},
    recipe::Labels,
    session::{
        AgentMessage, AssignedAttempt, Assignment, AttemptPhase, AttemptReport, CoordinatorMessage,
        ReplicaReport, Report,
    },
    tls::{Credentials, JoinString},
    trainer::{Calibration, Ending, Metrics},
    view::JobView,
};
use hatchery_net::{Connect, transfer::BlobClient};
use hatchery_proto::client::{AgentsClient, Answers, CallError, TokenCall};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::fixture::{Fixture, checkpoint, name, soon};

pub(crate) fn token(scope: Scope) -> TokenCall {
    TokenCall { scope, name: None, labels: Labels::new(), valid: None }
}

/// Joins as `scope` under the name `called`.
pub(crate) async fn join(fixture: &Fixture, scope: Scope, called: &str) -> (Credentials, Option<NodeId>) {
    let (text, _) = soon(fixture.fleet().await.create_token(&token(scope))).await.unwrap();
    let string: JoinString = text.parse().unwrap();
    let (credentials, given, node) =
        soon(hatchery_net::join(&string, &name(called), &Labels::new())).await.unwrap();
    assert_eq!(given, name(called));
    (credentials, node)
}

pub(crate) struct Agent {
    pub(crate) credentials: Credentials,
    pub(crate) node: NodeId,
    pub(crate) client: AgentsClient,
    pub(crate) blobs: BlobStore,
    _folder: Arc<TempDir>,
}

pub(crate) struct Session {
    outgoing: mpsc::Sender<AgentMessage>,
    pub(crate) incoming: Answers<CoordinatorMessage>,
    sequence: u64,
}

pub(crate) fn inventory() -> Inventory {
    Inventory {
        hostname: "box".into(),
        cores: 2,
        memory_bytes: 8 << 30,
        trainer: TrainerState::Ready { version: "0.1.0".into(), libtorch: "2.11.0".into() },
        devices: vec![NodeDevice {
            device: Device::CPU,
            name: "a processor".into(),
            memory_bytes: 8 << 30,
            bf16: false,
            driver: None,
            power_watts_max: None,
            calibration: Some(Calibration {
                device: Device::CPU,
                steps_per_sec: 10.0,
                flops_per_sec: 1e10,
                version: 1,
            }),
        }],
        ..Inventory::default()
    }
}

impl Agent {
    pub(crate) async fn join(fixture: &Fixture, called: &str) -> Self {
        let (credentials, node) = join(fixture, Scope::Agent, called).await;
        let folder = tempfile::tempdir().unwrap();
        let limits = BlobLimits { free_bytes_min: 0, ..BlobLimits::default() };
        let blobs = BlobStore::open(folder.path(), limits).unwrap();
        let client = soon(AgentsClient::connect(&credentials)).await.unwrap();
        Self { credentials, node: node.unwrap(), client, blobs, _folder: Arc::new(folder) }
    }

    /// Finds the coordinator again after it has moved to another port.
    pub(crate) async fn move_to(&mut self, fixture: &Fixture) {
        self.credentials.addresses = vec![fixture.address()];
        self.client = soon(AgentsClient::connect(&self.credentials)).await.unwrap();
    }

    /// Opens a session: says hello, takes the welcome, and reports that nothing runs.
    pub(crate) async fn session(&self) -> Session {
        let mut session = self.dial().await;
        session.report_blindly(vec![]).await;
        session
    }

    /// The same without a report.
    pub(crate) async fn dial(&self) -> Session {
        let mut session = self.raw_session().await.unwrap();
        session.send(AgentMessage::Hello(Box::new(inventory()))).await;
        let welcome = session.next().await;
        assert!(matches!(welcome, CoordinatorMessage::Welcome { .. }), "{welcome:?}");
        session
    }

    pub(crate) async fn raw_session(&self) -> Result<Session, CallError> {
        let (outgoing, messages) = mpsc::channel(16);
        let incoming = soon(self.client.session(ReceiverStream::new(messages))).await?;
        Ok(Session { outgoing, incoming, sequence: 0 })
    }

    /// Puts a checkpoint's blobs and commits it.
    pub(crate) async fn commit(
        &self,
        job: &JobView,
        attempt: &AssignedAttempt,
        step: u64,
        parent: Option<CheckpointId>,
    ) -> Result<CheckpointId, CallError> {
        let manifest = checkpoint(&self.blobs, job, attempt.id.epoch, step, parent);
        self.put(&manifest).await;
        soon(self.client.commit_checkpoint(&manifest, None)).await
    }

    /// The same with figures of its own.
    pub(crate) async fn commit_with(
        &self,
        job: &JobView,
        attempt: &AssignedAttempt,
        step: u64,
        metrics: Metrics,
    ) -> CheckpointId {
        let parent = None;
        let manifest =
            CheckpointManifest { metrics, ..checkpoint(&self.blobs, job, attempt.id.epoch, step, parent) };
        self.put(&manifest).await;
        soon(self.client.commit_checkpoint(&manifest, None)).await.unwrap()
    }

    pub(crate) async fn put(&self, manifest: &CheckpointManifest) {
        let ids: Vec<_> = manifest.files.iter().map(|file| file.blob).collect();
        let client = soon(BlobClient::connect(&self.credentials)).await.unwrap();
        soon(client.put(&ids, &self.blobs, |_| {})).await.unwrap();
    }
}

impl Session {
    pub(crate) async fn send(&self, message: AgentMessage) {
        soon(self.outgoing.send(message)).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> CoordinatorMessage {
        soon(self.incoming.next()).await.expect("the session has ended").expect("the session has failed")
    }

    /// The next assignment that is as wanted.
    pub(crate) async fn assignment(&mut self, wanted: impl Fn(&Assignment) -> bool) -> Assignment {
        loop {
            if let CoordinatorMessage::Assignment(assignment) = self.next().await
                && wanted(&assignment)
            {
                return assignment;
            }
        }
    }

    /// The attempt that the node is given.
    pub(crate) async fn attempt(&mut self) -> AssignedAttempt {
        self.assignment(|assignment| !assignment.attempts.is_empty()).await.attempts.remove(0)
    }

    /// Reports, and waits for the receipt.
    pub(crate) async fn report(&mut self, attempts: Vec<AttemptReport>, replicas: Vec<ReplicaReport>) {
        self.sequence += 1;
        let sequence = self.sequence;
        let report = Report { sequence, attempts, replicas, ..Report::default() };
        self.send(AgentMessage::Report(report)).await;
        loop {
            if self.next().await == (CoordinatorMessage::ReportReceived { sequence }) {
                return;
            }
        }
    }

    /// Reports, of everything, whether the node is its owner's, and waits for the receipt.
    pub(crate) async fn report_away(&mut self, away: Option<Away>, attempts: Vec<AttemptReport>) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(AgentMessage::Report(Report { sequence, attempts, away, ..Report::default() })).await;
        while self.next().await != (CoordinatorMessage::ReportReceived { sequence }) {}
    }

    /// Reports the machine's figures, and waits for the receipt.
    pub(crate) async fn report_metrics(&mut self, metrics: NodeMetrics) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(AgentMessage::Report(Report { sequence, metrics, ..Report::default() })).await;
        while self.next().await != (CoordinatorMessage::ReportReceived { sequence }) {}
    }

    /// Reports without waiting for anything.
    pub(crate) async fn report_blindly(&mut self, attempts: Vec<AttemptReport>) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(AgentMessage::Report(Report { sequence, attempts, ..Report::default() })).await;
    }
}

pub(crate) fn report_of(attempt: &AssignedAttempt, phase: AttemptPhase) -> AttemptReport {
    AttemptReport { id: attempt.id, phase, progress: None, validation: None, running_on: None }
}

pub(crate) fn ended(attempt: &AssignedAttempt, ending: Ending) -> AttemptReport {
    report_of(attempt, AttemptPhase::Ended { ending, last_output: "the last line\n".into() })
}
