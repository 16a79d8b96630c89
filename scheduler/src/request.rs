//! Requests: what people and agents want changed, and why it may be refused.

use std::time::Duration;

use hatchery_common::{
    access::Scope,
    checkpoint::CheckpointManifest,
    dataset::DatasetManifest,
    digest::Digest,
    field::FieldError,
    id::{CertificateId, CheckpointId, Epoch, JobId, Name, NodeId, RequestId, RolloutId},
    node::{Inventory, NodeMode},
    recipe::{JobSpec, Labels, NodeSelector, Priority},
    self_test::SelfTest,
    time::Timestamp,
    trainer::Ending,
};

/// What somebody wants changed. Fresh ids are drawn by the caller, so that deciding stays pure.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Make a join token.
    CreateToken {
        /// Digest of the secret.
        secret: Digest,
        /// What it is to give.
        scope: Scope,
        /// The name wished for the node or the person.
        name: Option<Name>,
        /// Labels for the node.
        labels: Labels,
        by: Name,
        /// After this it is void.
        expires_at: Timestamp,
    },
    /// Use a token: get a certificate, and for an agent become a node.
    Join {
        /// Digest of the secret given.
        secret: Digest,
        /// The certificate's new id.
        certificate: CertificateId,
        /// The node's new id, used for an agent.
        node: NodeId,
        /// The name wished by the joiner, where the token wishes none; made unique for a node.
        name: Name,
        /// Labels wished by the joiner, added to the token's.
        labels: Labels,
    },
    /// Renew the certificate of a known bearer: same scope, same name, a new id.
    Renew {
        /// The certificate that asks.
        old: CertificateId,
        new: CertificateId,
    },
    /// Take a node out: its leases end as lost, and its certificates are revoked.
    RemoveNode {
        node: NodeId,
        /// A lease's term. The node may train on for so long, so its jobs go nowhere else before it is over.
        lease: Duration,
    },
    RevokeCertificate {
        certificate: CertificateId,
    },
    /// A node says what it is and has.
    Inventory {
        node: NodeId,
        /// What it is and has.
        inventory: Box<Inventory>,
    },
    /// Register a dataset whose blobs are all here (the caller has checked).
    RegisterDataset {
        /// What it is made of.
        manifest: DatasetManifest,
    },
    Submit {
        /// The request's id: I2.
        request: RequestId,
        /// The job's new id, if it becomes one.
        job: JobId,
        /// Digest of the body, by which a repeated request is known.
        body: Digest,
        /// What is to be trained.
        spec: Box<JobSpec>,
        submitter: Name,
    },
    Cancel {
        job: JobId,
        by: Name,
    },
    /// Pause a job, through a checkpoint if it runs.
    Pause {
        job: JobId,
        by: Name,
    },
    /// Let a paused job wait for a device again.
    Resume {
        job: JobId,
        by: Name,
    },
    /// Send a running job back to the queue, through a checkpoint.
    Requeue {
        job: JobId,
        by: Name,
    },
    /// Give a job another priority.
    SetPriority {
        job: JobId,
        priority: Priority,
        by: Name,
    },
    /// Choose whether a node is given work.
    SetNodeMode {
        node: NodeId,
        mode: NodeMode,
        by: Name,
    },
    /// Ask whether a checkpoint is wanted, before its bytes are brought. One that is not goes into the job's history.
    OfferCheckpoint {
        /// The node that has it.
        node: NodeId,
        job: JobId,
        /// The epoch that it was made under.
        epoch: Epoch,
        /// Of which step it is.
        step: u64,
    },
    /// Commit a checkpoint whose blobs are all here and verified (the caller has checked).
    CommitCheckpoint {
        /// The node that asks.
        node: NodeId,
        /// What it is made of.
        manifest: Box<CheckpointManifest>,
        /// What it answered on that node, if it did.
        self_test: Option<Box<SelfTest>>,
    },
    /// An attempt ended on its node.
    AttemptEnded {
        /// The node that says so.
        node: NodeId,
        job: JobId,
        epoch: Epoch,
        ending: Ending,
        /// The last lines of its stderr.
        last_output: String,
    },
    /// An agent says goodbye: its leases end at once.
    Goodbye {
        node: NodeId,
    },
    /// Put a checkpoint on nodes.
    Push {
        /// The rollout's new id.
        rollout: RolloutId,
        checkpoint: CheckpointId,
        to: NodeSelector,
        /// Whether it is to answer for its job there.
        activate: bool,
        /// How fast each node may fetch it at most, in bytes per second.
        bytes_per_sec_max: Option<u64>,
        by: Name,
    },
    /// Take a rollout back.
    Withdraw {
        rollout: RolloutId,
        /// From which of its nodes.
        from: NodeSelector,
        by: Name,
    },
    /// Take the newest activating rollout of a job back.
    RollBack {
        job: JobId,
        /// From which nodes: the newest that reaches one of them.
        from: NodeSelector,
        by: Name,
    },
    /// Want a checkpoint kept, or no longer.
    Pin {
        checkpoint: CheckpointId,
        /// Whether it is to be kept.
        is_pinned: bool,
        by: Name,
    },
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// A field is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// Something that the request names is not there.
    #[error("there is no {what} {id}")]
    NotFound {
        /// `job`, `node`, `dataset`, `checkpoint`, `certificate`.
        what: &'static str,
        id: String,
    },
    /// The request id was used with another body: I2.
    #[error("request id {request} was already used for job {job} with different contents; use a new one")]
    RequestReused {
        request: RequestId,
        /// The job it made.
        job: JobId,
    },
    /// The epoch is not the job's current one, or the node does not hold its lease: I3.
    #[error(
        "job {job}: epoch {given} on this node has no lease (current epoch: {current}); its work is discarded"
    )]
    Fenced { job: JobId, given: Epoch, current: Epoch },
    /// The job has ended.
    #[error("job {job} has already {phase}")]
    AlreadyEnded { job: JobId, phase: &'static str },
    /// The job is not in a phase in which that can be done.
    #[error("job {job} is {phase} and cannot be {action}")]
    WrongPhase {
        job: JobId,
        phase: &'static str,
        /// What was asked: `paused`, `resumed`, `requeued`.
        action: &'static str,
    },
    /// Nobody has activated a checkpoint of the job.
    #[error(
        "{job} has no rollout to roll back: its policy chooses the active checkpoint; choose another with \
         `hatchery push CHECKPOINT --activate`"
    )]
    NothingActivated { job: Name },
    /// The token is unknown, used or expired. Which one is not said to a stranger.
    #[error("this join string is unknown, used or expired; create a new one with `hatchery token create`")]
    BadToken,
    /// The certificate is revoked or unknown.
    #[error("this certificate is revoked or unknown; join again with a new join string")]
    BadCertificate,
    /// A limit of the fleet.
    #[error("the fleet already has {limit} {what}, the limit")]
    Full {
        /// `nodes`, `jobs waiting`, `join tokens`.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
}
