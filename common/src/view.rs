//! What people are shown of the fleet. These types are also the `--output json` of the command line, so their field
//! names are stable.

use serde::{Deserialize, Serialize, Serializer};

use crate::{
    availability::Away,
    checkpoint::CheckpointManifest,
    device::Device,
    id::{CheckpointId, DatasetId, Epoch, JobId, Name, NodeId, RolloutId},
    job::{Failure, JobPhase},
    node::{Inventory, NodeMetrics, NodeMode},
    placement::Candidate,
    recipe::{JobSpec, Labels},
    time::Timestamp,
    trainer::{Metrics, Progress, Validation},
    words::words,
};

/// The coordinator itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// Its version.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// The number of the fleet's last event.
    pub last_event: u64,
    /// Nodes whose session is open.
    pub nodes_connected: u32,
    /// Nodes in all.
    pub nodes: u32,
    /// Jobs that have a lease.
    pub jobs_running: u32,
    /// Jobs that wait.
    pub jobs_queued: u32,
    /// The coordinator's blobs.
    pub blobs: BlobsView,
    /// Batches and plans that the coordinator has refused since its start, because they would have broken an invariant.
    #[serde(default)]
    pub invariants_broken: u64,
    /// The last invariant that one of them would have broken, and how.
    #[serde(default)]
    pub invariant_broken_last: Option<String>,
}

/// The blobs that the coordinator keeps: what datasets and checkpoints are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobsView {
    /// How many there are.
    pub count: u64,
    /// Bytes of all, unfinished transfers included.
    pub bytes: u64,
    /// Bytes of those that nothing names any more: they are removed when nobody has asked for them for a while.
    pub unreferenced_bytes: u64,
    /// Bytes of unfinished transfers, at their full length: one that broke off is given up after a while.
    pub unfinished_bytes: u64,
    /// Most bytes that there may be; none: what the disk holds.
    pub bytes_max: Option<u64>,
    /// Free bytes of the disk; none: it cannot be told.
    pub disk_free_bytes: Option<u64>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobView {
    /// Its identity.
    pub id: JobId,
    /// What was submitted, or what of it this version knows.
    pub spec: JobSpec,
    /// Why parts of it are not in `spec`, a sentence for each: a newer version submitted it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
    /// Who submitted it.
    pub submitter: Name,
    /// When.
    pub submitted_at: Timestamp,
    /// Where it stands; in JSON its name.
    #[serde(serialize_with = "phase_name")]
    pub phase: JobPhase,
    /// Why it waits, failed, is held or ended early, as a sentence.
    pub why: Option<String>,
    /// The newest attempt's epoch; 0: none yet.
    pub epoch: Epoch,
    /// The name of the node that has the lease, or had the last one.
    pub node: Option<Name>,
    /// The device there.
    pub device: Option<Device>,
    /// When the first attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What the attempt is doing, in a few words.
    pub activity: Option<String>,
    /// Arithmetic and device in words.
    pub running_on: Option<String>,
    /// The last progress of the attempt.
    pub progress: Option<Progress>,
    /// The last validation of the attempt.
    pub validation: Option<Validation>,
    /// The newest committed checkpoint.
    pub checkpoint: Option<CheckpointId>,
    /// The committed checkpoint of the lowest validation loss.
    pub best: Option<CheckpointId>,
    /// Steps done at the newest checkpoint.
    pub checkpoint_step: u64,
    /// That checkpoint's figures.
    pub metrics: Metrics,
    /// Attempts that failed, oldest first.
    pub failures: Vec<Failure<Name>>,
}

fn phase_name<S: Serializer>(phase: &JobPhase, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(phase.name())
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its identity.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// Its labels.
    pub labels: Labels,
    /// What it is and has.
    pub inventory: Inventory,
    /// When it joined.
    pub joined_at: Timestamp,
    /// Whether its session is open.
    pub state: NodeState,
    /// Milliseconds since its last report.
    pub last_heard_ms_ago: Option<u64>,
    /// The figures of that report; none: it has not reported since the coordinator started.
    pub metrics: Option<NodeMetrics>,
    /// What runs on it.
    pub running: Vec<RunningView>,
    /// Checkpoints that it holds, verified and answering.
    pub replicas_ready: u32,
    /// Checkpoints that it should hold.
    pub replicas_wanted: u32,
    /// Whether it is given work.
    pub mode: NodeMode,
    /// Why its devices are its owner's for now, as it last said.
    pub away: Option<Away>,
    /// The jobs that wait for its devices, each device's in their order.
    pub waiting: Vec<WaitingView>,
    /// What answers there for each job, as it last said.
    pub active: Vec<ActiveView>,
    /// How it stands among the nodes that fetch blobs from one another; none until it said so.
    pub peers: Option<PeersView>,
}

/// How a node stands among those that fetch blobs from one another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeersView {
    /// Where others reach it, the best first.
    pub addresses: Vec<String>,
    /// Whether the coordinator could dial it.
    pub can_be_dialled: bool,
    /// What its link sends while many fetch from it, where that was measured.
    pub up_bytes_per_sec: Option<f64>,
    /// What its link receives.
    pub down_bytes_per_sec: Option<f64>,
    /// Bytes that it has sent to others since its agent began.
    pub sent_bytes: u64,
    /// Bytes that came from others.
    pub received_bytes: u64,
    /// Blobs that it fetches now.
    pub fetching: u32,
    /// The nodes that were sent wrong bytes by it.
    pub suspected_by: Vec<Name>,
    /// Whether so many say so that nobody fetches from it any more.
    pub is_barred: bool,
}

/// A checkpoint that answers for its job on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveView {
    /// The job.
    pub job: JobId,
    /// Its name.
    pub job_name: Name,
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Its step.
    pub step: u64,
}

/// A job that waits for a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// The device.
    pub device: Device,
    /// The job.
    pub job: JobId,
    /// Its name.
    pub job_name: Name,
    /// Milliseconds until it is expected to start.
    pub start_in_ms: u64,
    /// Milliseconds until it is expected to end.
    pub end_in_ms: u64,
}

/// Where a job may go, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacementView {
    /// Every device, the best first; empty for a job that has ended.
    pub candidates: Vec<Candidate>,
    /// Why the job waits, or would, as a sentence.
    pub why: Option<String>,
}

/// Whether a node is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Its session is open.
    Connected,
    /// Its session is closed.
    Disconnected,
    /// Not heard from since the coordinator started.
    Unknown,
}

words!(NodeState, "state": Connected = "connected", Disconnected = "disconnected", Unknown = "unknown");

/// A job on a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningView {
    /// The device.
    pub device: Device,
    /// The job.
    pub job: JobId,
    /// Its name.
    pub job_name: Name,
    /// Its last progress.
    pub progress: Option<Progress>,
}

/// A dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetView {
    /// Its identity.
    pub id: DatasetId,
    /// Its name.
    pub name: Name,
    /// How many files.
    pub files: u64,
    /// The corpus, separators included.
    pub corpus_bytes: u64,
    /// When it was registered.
    pub registered_at: Timestamp,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointView {
    /// Its identity.
    pub id: CheckpointId,
    /// What it is made of.
    pub manifest: CheckpointManifest,
    /// The name of the job that made it.
    pub job_name: Name,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// Whether its validation loss is the lowest of its job.
    pub is_best: bool,
    /// Whether somebody has pinned it: it is kept whatever its job's policy says.
    pub is_pinned: bool,
    /// One for each node that should hold it.
    pub replicas: Vec<ReplicaView>,
}

/// One checkpoint on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub node_name: Name,
    /// How it stands; absent: wanted there, and the node has not begun or is not connected.
    pub state: Option<crate::session::ReplicaState>,
    /// Whether it answers there for its job.
    pub active: bool,
    /// Whether it is to answer there for its job, as soon as it can.
    pub to_be_active: bool,
    /// Whether only what it takes to answer is there, in bf16: nothing can go on from it.
    pub serving_only: bool,
}

/// A wish that a checkpoint be on a set of nodes, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutView {
    /// Its identity; none: it is its job's own policy.
    pub id: Option<RolloutId>,
    /// The job.
    pub job: JobId,
    /// Its name.
    pub job_name: Name,
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Its step.
    pub step: u64,
    /// Where, in words: `all nodes`, `nodes with room=attic`, `ada, bob`.
    pub to: String,
    /// Who asked; none: the policy.
    pub by: Option<Name>,
    /// When; of a policy, when the checkpoint was committed.
    pub at: Timestamp,
    /// Whether it is to answer for its job there.
    pub activate: bool,
    /// How fast each node may fetch it, in bytes per second; none: as fast as it can.
    pub bytes_per_sec_max: Option<u64>,
    /// When it was taken back, if it was.
    pub withdrawn_at: Option<Timestamp>,
    /// Nodes that it selects now.
    pub nodes: u32,
    /// Of these, how many hold it, verified and tested.
    pub ready: u32,
    /// Of these, on how many it answers for its job.
    pub active: u32,
    /// Of these, how many could not take it at the last try.
    pub failed: u32,
}

/// What is to answer for a job on a node, after a rollout was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NowActiveView {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub node_name: Name,
    /// The checkpoint; none: nothing answers there for the job any more.
    pub checkpoint: Option<CheckpointId>,
}

/// A rollout that was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawnView {
    /// The rollout.
    pub rollout: RolloutView,
    /// What is to answer on the nodes that it selected.
    pub active: Vec<NowActiveView>,
}

/// One entry of the fleet's history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Counts from 1 without gaps.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// `job_submitted`, `lease_granted`, ...
    pub kind: String,
    /// The job it concerns.
    pub job: Option<JobId>,
    /// The node it concerns.
    pub node: Option<NodeId>,
    /// A sentence for people.
    pub text: String,
    /// The whole change.
    pub change: serde_json::Value,
}
