//! Deciding: a request and the cluster's state give changes, or the reason why not.

mod access;
mod attempts;
mod jobs;
mod nodes;
mod rollouts;

use hatchery_common::{
    field::FieldError,
    id::{JobId, NodeId, RolloutId},
    recipe::{Labels, NodeSelector},
};

use crate::{
    cluster::{Certificate, Cluster, Job, JoinToken, Node, Rollout},
    event::Change,
    limits::{LABELS_MAX, NODES_NAMED_MAX},
    observed::Now,
    request::{Rejected, Request},
};

/// What a request comes to. No changes means that everything is already as it asks; that is an OK too.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// To be committed, in this order and together.
    pub changes: Vec<Change>,
    /// What to answer once they are.
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A job is in the queue.
    Submitted {
        job: JobId,
        /// Whether this same request had made it before: I2.
        duplicate: bool,
    },
    /// A certificate is to be signed and given out.
    Joined { certificate: Certificate },
    /// Whether a checkpoint is wanted.
    Offered {
        /// If not, why, for a person.
        declined: Option<String>,
    },
    /// A rollout is taken back.
    Withdrawn { rollout: RolloutId },
    /// It is done, or was done before.
    Done,
}

impl Decision {
    fn done(changes: impl IntoIterator<Item = Change>) -> Self {
        Self { changes: changes.into_iter().collect(), outcome: Outcome::Done }
    }
}

/// Decides `request`. Pure: fresh ids come with the request, the time with `now`.
pub fn decide(cluster: &Cluster, request: Request, now: Now) -> Result<Decision, Rejected> {
    let at = now.wall;
    match request {
        Request::CreateToken { secret, scope, name, labels, by: created_by, expires_at } => {
            let token =
                JoinToken { scope, name, labels, created_by, created_at: at, expires_at, used_at: None };
            access::create_token(cluster, secret, token)
        }
        Request::Join { secret, certificate, node, name, labels } => {
            access::join(cluster, access::Joiner { secret, certificate, node, name, labels }, at)
        }
        Request::Renew { old, new } => access::renew(cluster, old, new, at),
        Request::RevokeCertificate { certificate } => access::revoke(cluster, certificate, at),
        Request::RemoveNode { node, lease } => nodes::remove(cluster, node, lease, at),
        Request::Inventory { node, inventory } => nodes::inventory(cluster, node, inventory, at),
        Request::Goodbye { node } => nodes::goodbye(cluster, node, at),
        Request::RegisterDataset { manifest } => jobs::register_dataset(cluster, manifest, at),
        Request::Submit { request, job, body, spec, submitter } => {
            jobs::submit(cluster, jobs::Submission { request, job, body, spec, submitter }, at)
        }
        Request::Cancel { job, by } => jobs::cancel(cluster, job, by, at),
        Request::Pause { job, by } => jobs::pause(cluster, job, by, at),
        Request::Resume { job, by } => jobs::resume(cluster, job, by, at),
        Request::Requeue { job, by } => jobs::requeue(cluster, job, by, at),
        Request::SetPriority { job, priority, by } => jobs::set_priority(cluster, job, priority, by, at),
        Request::SetNodeMode { node, mode, by } => nodes::set_mode(cluster, node, mode, by, at),
        Request::Push { rollout, checkpoint, to, activate, bytes_per_sec_max, by } => {
            let rollout = Rollout {
                id: rollout,
                checkpoint,
                to,
                by,
                at,
                activate,
                bytes_per_sec_max,
                withdrawn_at: None,
                not_on: Vec::new(),
            };
            rollouts::push(cluster, rollout)
        }
        Request::Withdraw { rollout, from, by } => rollouts::withdraw(cluster, rollout, from, by, at),
        Request::RollBack { job, from, by } => rollouts::roll_back(cluster, job, from, by, at),
        Request::Pin { checkpoint, is_pinned, by } => rollouts::pin(cluster, checkpoint, is_pinned, by, at),
        Request::OfferCheckpoint { node, job, epoch, step } => {
            attempts::offer(cluster, node, attempts::Offer { job, epoch, step }, at)
        }
        Request::CommitCheckpoint { node, manifest, self_test } => {
            attempts::commit(cluster, node, manifest, self_test, at)
        }
        Request::AttemptEnded { node, job, epoch, ending, last_output } => {
            attempts::ended(cluster, node, attempts::End { job, epoch, ending, last_output }, at)
        }
    }
}

fn job(cluster: &Cluster, id: JobId) -> Result<&Job, Rejected> {
    cluster.jobs.get(&id).ok_or_else(|| Rejected::NotFound { what: "job", id: id.to_string() })
}

fn node(cluster: &Cluster, id: NodeId) -> Result<&Node, Rejected> {
    cluster.nodes.get(&id).ok_or_else(|| Rejected::NotFound { what: "node", id: id.to_string() })
}

fn check_room(there: usize, limit: usize, what: &'static str) -> Result<(), Rejected> {
    if there < limit { Ok(()) } else { Err(Rejected::Full { what, limit }) }
}

fn check_count(field: &str, given: usize, limit: usize) -> Result<(), FieldError> {
    if given <= limit {
        Ok(())
    } else {
        Err(FieldError::new(field, format!("has {given} entries, more than the limit of {limit}")))
    }
}

fn check_labels(field: &str, labels: &Labels) -> Result<(), FieldError> {
    check_count(field, labels.len(), LABELS_MAX)
}

fn check_selector(field: &str, selector: &NodeSelector) -> Result<(), FieldError> {
    match selector {
        NodeSelector::All | NodeSelector::None => Ok(()),
        NodeSelector::Labels(labels) => check_labels(field, labels),
        NodeSelector::Nodes(nodes) => check_count(field, nodes.len(), NODES_NAMED_MAX),
    }
}
