//! Events: the only way in which the cluster's state moves. They are committed, then applied, then shown.

use hatchery_common::{
    checkpoint::CheckpointManifest,
    dataset::DatasetManifest,
    digest::Digest,
    id::{CertificateId, CheckpointId, Epoch, JobId, Name, NodeId, RequestId, RolloutId},
    node::{Inventory, NodeMode},
    recipe::{JobSpec, Labels, NodeSelector, Priority},
    self_test::SelfTest,
    time::Timestamp,
    trainer::FailureCause,
};
use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::cluster::{Certificate, HandOver, JobPhase, JoinToken, Lease, MeasuredSpeed, Rollout, SpeedKey};

/// One step of the cluster's history. The store writes it into the events table as JSON, beside the rows it changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at: Timestamp,
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, IntoStaticStr)]
#[serde(tag = "change", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum What {
    /// A token was made.
    TokenCreated {
        /// Digest of the secret.
        secret: Digest,
        token: JoinToken,
    },
    /// A token was used up.
    TokenUsed {
        /// Digest of the secret.
        secret: Digest,
    },
    /// A certificate was given out.
    CertificateIssued { certificate: Certificate },
    /// A certificate was revoked.
    CertificateRevoked { certificate: CertificateId },
    /// A node joined.
    NodeJoined { node: NodeId, name: Name, labels: Labels },
    /// A node said what it is and has, and that differs from what it said before.
    NodeInventoried {
        node: NodeId,
        /// What it is and has.
        inventory: Box<Inventory>,
    },
    /// A node was taken out of the fleet; its certificates are revoked beside this.
    NodeRemoved { node: NodeId },
    /// A dataset is complete: all its blobs are here.
    DatasetRegistered {
        /// What it is made of.
        manifest: DatasetManifest,
    },
    /// A job was accepted.
    JobSubmitted {
        job: JobId,
        /// The request that made it.
        request: RequestId,
        /// Digest of that request's body: I2.
        body: Digest,
        /// What is to be trained.
        spec: Box<JobSpec>,
        submitter: Name,
    },
    LeaseGranted {
        job: JobId,
        epoch: Epoch,
        /// Where, and from which checkpoint.
        lease: Lease,
    },
    /// An attempt is over and the job goes back to the queue (a terminal end is a [`What::JobEnded`]).
    LeaseEnded {
        job: JobId,
        /// The epoch that ended.
        epoch: Epoch,
        why: LeaseEnd,
        /// No new lease before this time.
        not_before: Option<Timestamp>,
    },
    /// Somebody wants a running job to stop.
    CancelRequested { job: JobId, by: Name },
    /// A running attempt is to write a checkpoint and give its device back.
    HandOverRequested { job: JobId, why: HandOver },
    /// A job that waited is paused.
    JobPaused { job: JobId, by: Name },
    /// A paused job waits for a device again.
    JobResumed { job: JobId, by: Name },
    /// A job's priority is another one.
    PriorityChanged { job: JobId, priority: Priority, by: Name },
    /// Whether a node is given work is another choice.
    NodeModeChanged { node: NodeId, mode: NodeMode, by: Name },
    /// A device's speed at some kind of steps was measured while it trained.
    SpeedMeasured {
        /// Which device, which steps.
        key: SpeedKey,
        /// The mean with this measurement in it.
        speed: MeasuredSpeed,
    },
    /// A job reached a terminal phase.
    JobEnded { job: JobId, phase: JobPhase },
    /// A checkpoint is complete: all its blobs are here. Its epoch is the job's current one, or it comes late, from a node
    /// that was cut off and is further than all that came since.
    CheckpointCommitted {
        /// What it is made of.
        manifest: Box<CheckpointManifest>,
        /// Whether its attempt has lost its lease.
        #[serde(default)]
        late: bool,
        /// What it answered on the node that made it, if it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        self_test: Option<Box<SelfTest>>,
    },
    /// A checkpoint is kept no longer: its job's policy does not keep it, and nobody needs it.
    CheckpointRetired { checkpoint: CheckpointId, job: JobId },
    /// Somebody wants a checkpoint kept, or does so no longer.
    PinChanged {
        checkpoint: CheckpointId,
        job: JobId,
        /// Whether it is to be kept.
        is_pinned: bool,
        by: Name,
    },
    /// A checkpoint that came late is of no use and was not taken.
    CheckpointDeclined {
        job: JobId,
        /// The epoch that it was made under.
        epoch: Epoch,
        /// The node that has it.
        node: NodeId,
        /// Of which step it is.
        step: u64,
    },
    /// Somebody wants a checkpoint on nodes.
    RolloutStarted { rollout: Rollout },
    /// Somebody took a rollout back: what was active before it is so again.
    RolloutWithdrawn {
        rollout: RolloutId,
        /// From which of its nodes; all: it is over.
        from: NodeSelector,
        by: Name,
    },
    /// A rollout is no longer on record: it was taken back long ago, or is superseded for good.
    RolloutForgotten { rollout: RolloutId, checkpoint: CheckpointId },
    /// The fleet's state came back from a backup. What was granted after the backup was made is not known any more, so no
    /// job that has not ended is ever granted an epoch up to this one: I3.
    Restored {
        /// Above every epoch that was ever granted.
        epoch_floor: Epoch,
    },
}

impl What {
    /// The event that this happened at `at`.
    pub fn at(self, at: Timestamp) -> Event {
        Event { at, what: self }
    }

    /// Its kind, as it stands under `change` in its JSON.
    pub fn kind(&self) -> &'static str {
        self.into()
    }

    /// The job that it is about, if it is about one.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::JobSubmitted { job, .. }
            | Self::LeaseGranted { job, .. }
            | Self::LeaseEnded { job, .. }
            | Self::CancelRequested { job, .. }
            | Self::HandOverRequested { job, .. }
            | Self::JobPaused { job, .. }
            | Self::JobResumed { job, .. }
            | Self::PriorityChanged { job, .. }
            | Self::CheckpointDeclined { job, .. }
            | Self::CheckpointRetired { job, .. }
            | Self::PinChanged { job, .. }
            | Self::JobEnded { job, .. } => Some(*job),
            Self::CheckpointCommitted { manifest, .. } => Some(manifest.job),
            _ => None,
        }
    }

    /// The node that it is about, if it is about one.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::NodeJoined { node, .. }
            | Self::NodeInventoried { node, .. }
            | Self::NodeModeChanged { node, .. }
            | Self::NodeRemoved { node } => Some(*node),
            Self::LeaseGranted { lease, .. } => Some(lease.node),
            Self::SpeedMeasured { key, .. } => Some(key.node),
            Self::CertificateIssued { certificate } => certificate.node,
            _ => None,
        }
    }
}

/// Why a lease ended without ending its job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum LeaseEnd {
    /// The node was not heard from for the lease's term. Not the job's fault.
    NodeLost,
    /// The agent stopped the trainer cleanly: it is shutting down, or the lease ran out on its side. Not the job's fault.
    Stopped,
    /// The attempt gave its device back, as it was asked to, or because its node's owner needs it. Not the job's fault.
    HandedOver,
    /// The attempt failed; counts towards I10 if the trainer crashed.
    Failed {
        /// Why, as a class.
        cause: FailureCause,
        /// Why, for a person, with the last output.
        message: String,
    },
}
