//! Why a command is refused.

use hatchery_common::{
    field::FieldError,
    id::{Epoch, JobId, Name, RequestId},
};

/// Why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// A field is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// Something that the command names is not there.
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
