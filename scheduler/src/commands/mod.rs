//! Commands: what people and agents want changed. Each is decided to events and an outcome of its own type, or refused.

mod access;
mod attempts;
mod jobs;
mod nodes;
mod rollouts;

use hatchery_common::{
    field::FieldError,
    id::{JobId, NodeId},
    recipe::{Labels, NodeSelector},
};

use crate::{
    cluster::{Cluster, Job, Node},
    event::Event,
    limits::{LABELS_MAX, NODES_NAMED_MAX},
    observed::Now,
    rejected::Rejected,
};

pub use access::{CreateToken, Join, Renew, RevokeCertificate};
pub use attempts::{CommitCheckpoint, EndAttempt, OfferCheckpoint, Offered};
pub use jobs::{Cancel, Pause, RegisterDataset, Requeue, Resume, SetPriority, Submit, Submitted};
pub use nodes::{Goodbye, RemoveNode, SetInventory, SetNodeMode};
pub use rollouts::{Pin, Push, RollBack, Withdraw};

/// Something that somebody wants changed.
pub trait Command {
    /// What it comes to.
    type Outcome;

    /// Decides it. Pure: fresh ids come with the command, the time with `now`.
    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision<Self::Outcome>, Rejected>;
}

/// What a command comes to. No events means that everything is already as it asks; that is an OK too.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision<O = ()> {
    /// To be committed, in this order and together.
    pub events: Vec<Event>,
    /// What to answer once they are.
    pub outcome: O,
}

impl Decision {
    fn done(events: impl IntoIterator<Item = Event>) -> Self {
        Self { events: events.into_iter().collect(), outcome: () }
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
