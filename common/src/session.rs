//! What coordinator and agent tell each other over a session: desired state one way, observed state the other.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    availability::Away,
    device::Device,
    generate::{GenerationFinished, GenerationOrder},
    id::{AttemptId, BlobId, CheckpointId, JobId, Name, RequestId},
    node::{Inventory, NodeMetrics},
    recipe::JobSpec,
    swarm::{FetchPlan, Revoked, SwarmReport, Trouble},
    trainer::{Ending, Progress, Validation},
};

/// Everything that a node is to do, whole each time: what is not in it is to stop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// How long the coordinator waits, from the last report it received, before it gives the node's attempts away.
    pub lease: Duration,
    /// The attempts to run, sorted by job.
    pub attempts: Vec<AssignedAttempt>,
    /// Attempts to run whose spec the agent cannot read. A coordinator sends none; a reader finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<UnreadableAttempt>,
    /// The checkpoints to hold, newest last.
    pub checkpoints: Vec<CheckpointId>,
    /// For each job the checkpoint that is to answer for it here, once it is ready. All of them are to be held.
    pub active: BTreeMap<JobId, CheckpointId>,
    /// How fast a checkpoint may be fetched at most, in bytes per second, where somebody has said so.
    pub bytes_per_sec_max: BTreeMap<CheckpointId, u64>,
}

/// One attempt to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AssignedAttempt {
    /// Which attempt of which job.
    #[serde(flatten)]
    pub id: AttemptId,
    /// What to train.
    pub spec: JobSpec,
    /// Where.
    pub device: Device,
    /// The committed checkpoint to go on from; none: from the start.
    pub resume_from: Option<CheckpointId>,
    /// Whether the trainer is to write a checkpoint and stop, because the job was cancelled.
    pub stop: bool,
}

/// An attempt whose spec this version cannot read: a newer one wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableAttempt {
    /// Which attempt of which job.
    #[serde(flatten)]
    pub id: AttemptId,
    /// Whether it is to stop in any case.
    pub stop: bool,
    /// What is not known here and what to do, as a sentence.
    pub why: String,
}

/// All that an agent sees, whole each time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Counts the reports of one session from 1; the coordinator's answer names the one it answers.
    pub sequence: u64,
    /// Every attempt that the agent knows of, also ended ones until the assignment no longer has them.
    pub attempts: Vec<AttemptReport>,
    /// Every checkpoint that it holds or fetches.
    pub replicas: Vec<ReplicaReport>,
    /// The machine's figures of this moment.
    pub metrics: NodeMetrics,
    /// Whether the agent is about to stop and takes no new attempts.
    pub leaving: bool,
    /// Why its devices are its owner's for now; none: they are the fleet's.
    pub away: Option<Away>,
}

/// How one attempt stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptReport {
    /// Which attempt of which job.
    #[serde(flatten)]
    pub id: AttemptId,
    /// How far it is.
    pub phase: AttemptPhase,
    /// The trainer's last progress.
    pub progress: Option<Progress>,
    /// The trainer's last validation.
    pub validation: Option<Validation>,
    /// The arithmetic and device in words, once the trainer said: `cpu, f32`.
    pub running_on: Option<String>,
}

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum AttemptPhase {
    /// Dataset and checkpoint are being fetched.
    Fetching {
        /// Bytes fetched.
        done_bytes: u64,
        /// Bytes to fetch in all.
        total_bytes: u64,
    },
    /// The trainer is loading.
    Starting,
    /// The trainer makes steps.
    Running,
    /// The trainer was told to stop.
    Stopping,
    /// The trainer has ended and its checkpoints are committed.
    Ended {
        /// How.
        ending: Ending,
        /// The last lines of its stderr, for a failure.
        last_output: String,
    },
}

/// One checkpoint on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// Which.
    pub checkpoint: CheckpointId,
    /// How it stands.
    pub state: ReplicaState,
    /// Whether it answers here for its job.
    pub active: bool,
    /// Whether only what it takes to answer is here, in bf16: nothing can go on from it.
    pub serving_only: bool,
}

/// How a replica stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ReplicaState {
    /// On its way.
    Fetching {
        /// Bytes fetched and verified.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// Verified, and it answers as it does where it comes from.
    Ready {
        /// How long the self-test generation took.
        self_test_ms: f64,
    },
    /// It cannot be had or does not answer; it is tried again.
    Failed {
        /// Why.
        why: String,
    },
}

/// What an agent sends over its session.
#[derive(Clone, Debug, PartialEq)]
pub enum AgentMessage {
    /// First: what the node is and has.
    Hello(Box<Inventory>),
    /// All that it sees; every few seconds, and whenever something changed.
    Report(Report),
    /// What the node is and has, when that changed.
    Inventory(Box<Inventory>),
    /// What a trainer wrote to stderr.
    LogLines {
        /// Whose.
        attempt: AttemptId,
        /// Offset of `text` in everything that this attempt wrote, in bytes.
        offset: u64,
        /// At most [`LOG_CHUNK_BYTES_MAX`].
        text: Vec<u8>,
    },
    /// New bytes that the coordinator asked for.
    Generation {
        /// Which request.
        request: RequestId,
        /// Bytes, the figures at the end, or why not.
        part: AnswerPart,
    },
    /// Last, of a clean stop: the leases end at once.
    Goodbye,
    /// How it stands with the blobs that nodes exchange.
    Swarm(SwarmReport),
    /// A node from which it fetches gives trouble.
    PeerTrouble {
        /// The blob.
        blob: BlobId,
        /// What is wrong.
        trouble: Trouble,
    },
}

/// A part of a node's answer to a [`GenerationOrder`].
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerPart {
    /// New bytes, in order.
    Text(Vec<u8>),
    /// All bytes are made.
    Finished(GenerationFinished),
    /// It cannot be done.
    Failed(String),
}

/// What the coordinator sends over a session.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorMessage {
    /// First.
    Welcome {
        /// The node's name.
        name: Name,
        /// How often to report.
        report_every: Duration,
    },
    /// Whenever it changed, whole.
    Assignment(Assignment),
    /// The report of this sequence was received: the leases run on.
    ReportReceived {
        /// The report's own.
        sequence: u64,
    },
    /// Somebody asks a model for new bytes.
    Generation {
        /// The request's name in the answer.
        request: RequestId,
        /// What is asked.
        order: GenerationOrder,
    },
    /// Nobody listens any more.
    GenerationCancelled {
        /// Which request.
        request: RequestId,
    },
    /// From whom to fetch a blob; replaces the last plan for it.
    FetchPlan(FetchPlan),
    /// Whose certificates are worth nothing any more; whole each time.
    Revoked(Revoked),
}

/// Most bytes of stderr in one message.
pub const LOG_CHUNK_BYTES_MAX: usize = 64 * 1024;
/// Most attempts in one report.
pub const ATTEMPTS_MAX: usize = 2 * Device::COUNT_MAX;
/// Most replicas in one report.
pub const REPLICAS_MAX: usize = 10_000;
