//! Changes: the only way in which the cluster's state moves. They are committed, then applied, then shown.

use hatchery_common::{
    checkpoint::CheckpointManifest,
    dataset::DatasetManifest,
    digest::Digest,
    id::{CertificateId, Epoch, JobId, Name, NodeId, RequestId},
    node::Inventory,
    recipe::{JobSpec, Labels},
    time::Timestamp,
    trainer::FailureCause,
};
use serde::{Deserialize, Serialize};

use crate::cluster::{Certificate, JobPhase, JoinToken, Lease, Rollout};

/// One step of the cluster's history. The store writes it into the events table as JSON, beside the rows it changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// A token was made.
    TokenCreated {
        /// Digest of the secret.
        secret: Digest,
        /// What it gives.
        token: JoinToken,
    },
    /// A token was used up.
    TokenUsed {
        /// Digest of the secret.
        secret: Digest,
        /// When.
        at: Timestamp,
    },
    /// A certificate was given out.
    CertificateIssued {
        /// Which.
        certificate: Certificate,
    },
    /// A certificate was revoked.
    CertificateRevoked {
        /// Which.
        certificate: CertificateId,
        /// When.
        at: Timestamp,
    },
    /// A node joined.
    NodeJoined {
        /// Which.
        node: NodeId,
        /// Its name.
        name: Name,
        /// Its labels.
        labels: Labels,
        /// When.
        at: Timestamp,
    },
    /// A node said what it is and has, and that differs from what it said before.
    NodeInventoried {
        /// Which.
        node: NodeId,
        /// What it is and has.
        inventory: Box<Inventory>,
    },
    /// A node was taken out of the fleet; its certificates are revoked beside this.
    NodeRemoved {
        /// Which.
        node: NodeId,
        /// When.
        at: Timestamp,
    },
    /// A dataset is complete: all its blobs are here.
    DatasetRegistered {
        /// What it is made of.
        manifest: DatasetManifest,
        /// When.
        at: Timestamp,
    },
    /// A job was accepted.
    JobSubmitted {
        /// Its identity.
        job: JobId,
        /// The request that made it.
        request: RequestId,
        /// Digest of that request's body: I2.
        body: Digest,
        /// What is to be trained.
        spec: Box<JobSpec>,
        /// Who submitted it.
        submitter: Name,
        /// When.
        at: Timestamp,
    },
    /// An attempt begins.
    LeaseGranted {
        /// The job.
        job: JobId,
        /// The new epoch.
        epoch: Epoch,
        /// Where, and from which checkpoint.
        lease: Lease,
    },
    /// An attempt is over and the job goes back to the queue (a terminal end is a [`Change::JobEnded`]).
    LeaseEnded {
        /// The job.
        job: JobId,
        /// The epoch that ended.
        epoch: Epoch,
        /// Why.
        why: LeaseEnd,
        /// No new lease before this time.
        not_before: Option<Timestamp>,
        /// When.
        at: Timestamp,
    },
    /// Somebody wants a running job to stop.
    CancelRequested {
        /// The job.
        job: JobId,
        /// Who.
        by: Name,
        /// When.
        at: Timestamp,
    },
    /// A job reached a terminal phase.
    JobEnded {
        /// The job.
        job: JobId,
        /// Which phase.
        phase: JobPhase,
        /// When.
        at: Timestamp,
    },
    /// A checkpoint is complete: all its blobs are here, and its epoch is the job's current one.
    CheckpointCommitted {
        /// What it is made of.
        manifest: Box<CheckpointManifest>,
        /// When.
        at: Timestamp,
    },
    /// Somebody wants a checkpoint on nodes.
    RolloutStarted {
        /// The wish.
        rollout: Rollout,
    },
}

/// Why a lease ended without ending its job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum LeaseEnd {
    /// The node was not heard from for the lease's term. Not the job's fault.
    NodeLost,
    /// The agent stopped the trainer cleanly: it is shutting down, or the lease ran out on its side. Not the job's fault.
    Stopped,
    /// The attempt failed; counts towards I10 if the trainer crashed.
    Failed {
        /// Why, as a class.
        cause: FailureCause,
        /// Why, for a person, with the last output.
        message: String,
    },
}
