//! The durable state of the fleet. It changes only by [`Change`](crate::Change)s.

use std::collections::BTreeMap;

use hatchery_common::{
    access::Scope,
    availability::AwayReason,
    checkpoint::CheckpointManifest,
    dataset::DatasetManifest,
    device::Device,
    digest::Digest,
    id::{
        AttemptId, CertificateId, CheckpointId, DatasetId, Epoch, JobId, Name, NodeId, RequestId, RolloutId,
    },
    node::{Inventory, NodeMode},
    recipe::{JobSpec, Labels, NodeSelector, StartHow},
    self_test::SelfTest,
    time::Timestamp,
    trainer::Metrics,
};
use serde::{Deserialize, Serialize};

pub use hatchery_common::{
    access::Certificate,
    job::{Failure, JobPhase},
};

/// Everything that the coordinator knows for certain.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// Nodes that have joined, removed ones left out.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Every job, ended ones included.
    pub jobs: BTreeMap<JobId, Job>,
    /// Which request made which job: I2.
    pub requests: BTreeMap<RequestId, (Digest, JobId)>,
    pub datasets: BTreeMap<DatasetId, Dataset>,
    /// Every committed checkpoint that is kept.
    pub checkpoints: BTreeMap<CheckpointId, Checkpoint>,
    /// Every committed checkpoint that was not kept.
    pub retired: BTreeMap<CheckpointId, RetiredCheckpoint>,
    /// The rollouts that somebody asked for; of those that are over or superseded for good the newest.
    pub rollouts: BTreeMap<RolloutId, Rollout>,
    /// Join tokens by the digest of their secret; the secret itself is never kept.
    pub tokens: BTreeMap<Digest, JoinToken>,
    /// Every certificate given out.
    pub certificates: BTreeMap<CertificateId, Certificate>,
    /// How fast devices were when they trained.
    pub speeds: BTreeMap<SpeedKey, MeasuredSpeed>,
    /// The number of the last change; the first is 1.
    pub last_event: u64,
}

impl Job {
    /// The newest attempt.
    pub const fn attempt(&self) -> AttemptId {
        AttemptId { job: self.id, epoch: self.epoch }
    }

    /// Whether `node` had the lease under `epoch`.
    pub fn was_held(&self, epoch: Epoch, node: NodeId) -> bool {
        self.holders.contains(&Holder { epoch, node })
    }

    /// Steps that a new attempt would find done.
    pub fn steps_done(&self) -> u64 {
        self.checkpoint_step.max(self.start_step)
    }
}

impl Cluster {
    /// The step that a job by `spec` begins with.
    pub fn start_step(&self, spec: &JobSpec) -> u64 {
        let continued = spec.start_from.filter(|start| start.how == StartHow::Continue);
        let step_of = |id: CheckpointId| {
            let kept = self.checkpoints.get(&id).map(|checkpoint| checkpoint.manifest.step);
            kept.or_else(|| self.retired.get(&id).map(|retired| retired.step))
        };
        continued.and_then(|start| step_of(start.checkpoint)).unwrap_or(0)
    }

    /// The job that made a checkpoint, also of one that is kept no longer.
    pub fn job_of(&self, checkpoint: CheckpointId) -> Option<JobId> {
        let kept = self.checkpoints.get(&checkpoint).map(|kept| kept.manifest.job);
        kept.or_else(|| self.retired.get(&checkpoint).map(|retired| retired.job))
    }

    /// The checkpoint of `job` with the lowest validation loss, each by the validation of its own step; of equal ones the
    /// first.
    pub fn best_checkpoint(&self, job: JobId) -> Option<CheckpointId> {
        let own = self.checkpoints.iter().filter(|(_, checkpoint)| checkpoint.manifest.job == job);
        let validated = own.filter_map(|(id, checkpoint)| {
            let step = checkpoint.manifest.step;
            Some((checkpoint.manifest.metrics.own_validation_loss(step)?, step, *id))
        });
        let best = validated.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        best.map(|(_, _, id)| id)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its identity, as its certificate names it.
    pub id: NodeId,
    /// What people call it; unique among nodes.
    pub name: Name,
    /// What people put on it.
    pub labels: Labels,
    /// What it is and has, as it last said.
    pub inventory: Inventory,
    pub joined_at: Timestamp,
    /// Whether it is given work.
    pub mode: NodeMode,
}

/// A device and what it trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SpeedKey {
    pub node: NodeId,
    pub device: Device,
    /// The kind of steps.
    pub workload: Workload,
}

/// Steps of one kind: a digest of the model's shape, the batch, the block and the precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Workload(pub Digest);

/// How fast a device made steps of one kind: a mean in which older attempts count less and less.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredSpeed {
    /// The mean, in steps per second.
    pub steps_per_sec: f64,
    /// The deviation from it, as a share of it, by the same kind of mean.
    pub spread: f64,
    /// How many measurements it is made of.
    pub measurements: u32,
    /// When the last one was taken.
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    pub spec: JobSpec,
    pub submitter: Name,
    pub submitted_at: Timestamp,
    pub phase: JobPhase,
    /// The newest lease's epoch; 0 before the first.
    pub epoch: Epoch,
    /// The lease, while there is one.
    pub lease: Option<Lease>,
    /// Why the attempt is to write a checkpoint and give its device back, while it is.
    pub hand_over: Option<HandOver>,
    /// When the first lease was granted.
    pub started_at: Option<Timestamp>,
    /// When it reached a terminal phase.
    pub ended_at: Option<Timestamp>,
    /// The newest committed checkpoint.
    pub checkpoint: Option<CheckpointId>,
    /// The step that the job begins with: that of the checkpoint which it continues, else 0.
    pub start_step: u64,
    /// The committed checkpoint of the lowest validation loss.
    pub best: Option<CheckpointId>,
    /// Steps done at the newest checkpoint.
    pub checkpoint_step: u64,
    /// The figures of that checkpoint.
    pub metrics: Metrics,
    /// Which node had each epoch, oldest first, bounded.
    pub holders: Vec<Holder>,
    /// Attempts that failed, oldest first, bounded.
    pub failures: Vec<Failure>,
    /// No new lease before this time: backing off after a failure.
    pub not_before: Option<Timestamp>,
}

/// One attempt's right to a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    pub node: NodeId,
    pub device: Device,
    /// When it was granted.
    pub granted_at: Timestamp,
    /// The checkpoint that the attempt goes on from, or begins with as the job's spec says.
    pub resume_from: Option<CheckpointId>,
}

/// Why a running attempt is to write a checkpoint and give its device back. The job goes on from that checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum HandOver {
    /// Somebody paused the job.
    Pause { by: Name },
    /// Somebody sent it back to the queue.
    Requeue { by: Name },
    /// Its node is being drained.
    Drain,
    /// Its node's owner needs it.
    NodeAway { reason: AwayReason },
    /// A job of higher priority needs the device.
    Preempt { by: JobId },
    /// It is expected to end sooner elsewhere, the move included.
    Migrate {
        to: NodeId,
        /// On which device of it.
        device: Device,
        /// By how many seconds.
        sooner_secs: u64,
    },
    /// A node that was cut off has brought a checkpoint that is further than this attempt.
    Overtaken { step: u64 },
}

/// The node that an epoch was granted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub epoch: Epoch,
    pub node: NodeId,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    /// What it is made of.
    pub manifest: DatasetManifest,
    /// When it was registered.
    pub registered_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// What it is made of.
    pub manifest: CheckpointManifest,
    /// When it was committed.
    pub committed_at: Timestamp,
    /// Whether its attempt had lost its lease by then: a node that was cut off kept it.
    pub late: bool,
    /// What it answered on the node that made it; none: it gave no answer there, or was made by an older version.
    pub self_test: Option<SelfTest>,
    /// Whether somebody wants it kept, whatever its job's policy says.
    pub is_pinned: bool,
}

/// What is left of a committed checkpoint that was not kept: enough to know it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetiredCheckpoint {
    /// The job that made it.
    pub job: JobId,
    /// The attempt that made it.
    pub epoch: Epoch,
    pub step: u64,
}

/// Somebody's wish that a checkpoint be on a set of nodes, beside what the job's own policy wishes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub id: RolloutId,
    pub checkpoint: CheckpointId,
    pub to: NodeSelector,
    pub by: Name,
    pub at: Timestamp,
    /// Whether it is to answer for its job there.
    #[serde(default)]
    pub activate: bool,
    /// How fast each node may fetch it at most, in bytes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_sec_max: Option<u64>,
    /// When it was taken back, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn_at: Option<Timestamp>,
    /// Nodes from which alone it was taken back, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_on: Vec<NodeSelector>,
}

/// A one-time right to get a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// What the certificate will allow.
    pub scope: Scope,
    /// The name wished for the node or the person.
    pub name: Option<Name>,
    /// Labels for the node.
    pub labels: Labels,
    pub created_by: Name,
    /// When it was made.
    pub created_at: Timestamp,
    /// After this it is void.
    pub expires_at: Timestamp,
    /// When it was used.
    pub used_at: Option<Timestamp>,
}
