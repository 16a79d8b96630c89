//! Which node generates.

use hatchery_common::{
    id::{CheckpointId, NodeId},
    session::ReplicaState,
};
use hatchery_scheduler::{Cluster, Job, active};

use crate::{
    core::handle::Snapshot,
    sessions::generations::GenerateError,
    views::{event::node_name, replica, replicas},
};

/// Nodes that an error lists.
const NODES_LISTED_MAX: usize = 8;

/// The node to ask for a job, and the checkpoint that is active of it there; none where no checkpoint of it is. Nodes that
/// are where they should be come first, then as in [`choose`].
pub(crate) fn choose_active(
    snapshot: &Snapshot,
    job: &Job,
    given: Option<NodeId>,
) -> Option<(NodeId, CheckpointId)> {
    let cluster = &snapshot.cluster;
    let is_own = |id: CheckpointId| {
        cluster.checkpoints.get(&id).is_some_and(|checkpoint| checkpoint.manifest.job == job.id)
            || cluster.retired.get(&id).is_some_and(|retired| retired.job == job.id)
    };
    let nodes = cluster.nodes.values().filter(|node| given.is_none_or(|given| node.id == given));
    let answering = nodes.flat_map(|node| {
        let wished = active(cluster, node).get(&job.id).copied();
        replicas(snapshot, node.id).filter_map(move |replica| {
            let ReplicaState::Ready { self_test_ms } = replica.state else { return None };
            let answers = replica.active && is_own(replica.checkpoint);
            let is_behind = wished != Some(replica.checkpoint);
            answers.then_some((node.id, replica.checkpoint, is_behind, self_test_ms))
        })
    });
    let key = |one: &(NodeId, CheckpointId, bool, f64)| (one.2, trains(cluster, one.0));
    let best = answering.min_by(|a, b| key(a).cmp(&key(b)).then(a.3.total_cmp(&b.3)));
    best.map(|(node, checkpoint, ..)| (node, checkpoint))
}

fn trains(cluster: &Cluster, node: NodeId) -> bool {
    cluster.jobs.values().any(|job| job.lease.as_ref().is_some_and(|lease| lease.node == node))
}

/// The node to ask: the one given, or of those that hold the checkpoint one that does not train, and of these the one
/// whose self-test was fastest.
pub(crate) fn choose(
    snapshot: &Snapshot,
    checkpoint: CheckpointId,
    given: Option<NodeId>,
) -> Result<NodeId, GenerateError> {
    let cluster = &snapshot.cluster;
    let candidates = cluster.nodes.keys().filter(|node| given.is_none_or(|given| **node == given));
    let ready = candidates.clone().filter_map(|node| match replica(snapshot, *node, checkpoint) {
        Some(ReplicaState::Ready { self_test_ms }) => Some((*node, trains(cluster, *node), *self_test_ms)),
        _ => None,
    });
    let best = ready.min_by(|a, b| a.1.cmp(&b.1).then(a.2.total_cmp(&b.2)));
    best.map(|(node, ..)| node).ok_or_else(|| {
        let mut states: Vec<String> = candidates
            .take(NODES_LISTED_MAX)
            .map(|node| state_in_words(snapshot, *node, checkpoint))
            .collect();
        if states.is_empty() {
            states.push("no node has joined yet".to_owned());
        }
        let place = given.map_or("any connected node".to_owned(), |node| node_name(cluster, node));
        GenerateError::NotReady { checkpoint: checkpoint.short(), place, states: states.join(", ") }
    })
}

fn state_in_words(snapshot: &Snapshot, node: NodeId, checkpoint: CheckpointId) -> String {
    let name = node_name(&snapshot.cluster, node);
    let connected = snapshot.observed().nodes.get(&node).is_some_and(|node| node.connected);
    match replica(snapshot, node, checkpoint) {
        None if !connected => format!("{name} is not connected"),
        None => format!("{name} does not hold it"),
        Some(ReplicaState::Ready { .. }) => format!("{name} holds it"),
        Some(ReplicaState::Fetching { done_bytes, total_bytes }) => {
            format!("{name} has {done_bytes} of {total_bytes} bytes")
        }
        Some(ReplicaState::Failed { why }) => format!("{name} failed: {why}"),
    }
}
