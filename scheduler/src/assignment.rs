//! What each node is to do: the attempts that it has leases for and the checkpoints that it is to hold.

use std::{collections::BTreeSet, time::Duration};

use hatchery_common::{
    id::{CheckpointId, NodeId},
    recipe::{NodeSelector, ReplicateWhich},
    session::{AssignedAttempt, Assignment},
};

use crate::cluster::{Checkpoint, Cluster, Job, JobPhase, Node};

/// Everything that `node` is to do. Nothing, for a node that is not in the fleet.
pub fn assignment(cluster: &Cluster, node: NodeId, lease: Duration) -> Assignment {
    let Some(node) = cluster.nodes.get(&node) else {
        return Assignment { lease, ..Assignment::default() };
    };
    let attempts = cluster.jobs.values().filter_map(|job| attempt(job, node.id)).collect();
    let pushed: BTreeSet<CheckpointId> = cluster
        .rollouts
        .values()
        .filter(|rollout| selects(&rollout.to, node))
        .map(|rollout| rollout.checkpoint)
        .collect();
    let mut held: Vec<(CheckpointId, &Checkpoint)> = cluster
        .checkpoints
        .iter()
        .map(|(id, checkpoint)| (*id, checkpoint))
        .filter(|(id, checkpoint)| pushed.contains(id) || is_replicated(cluster, *id, checkpoint, node))
        .collect();
    held.sort_by_key(|(id, checkpoint)| (checkpoint.committed_at, checkpoint.manifest.step, *id));
    Assignment { lease, attempts, checkpoints: held.into_iter().map(|(id, _)| id).collect() }
}

fn attempt(job: &Job, node: NodeId) -> Option<AssignedAttempt> {
    let lease = job.lease.as_ref().filter(|lease| lease.node == node)?;
    Some(AssignedAttempt {
        job: job.id,
        epoch: job.epoch,
        spec: job.spec.clone(),
        device: lease.device,
        resume_from: lease.resume_from,
        stop: job.phase == JobPhase::Cancelling,
    })
}

/// The nodes that are to hold `checkpoint`, by its job's policy or because somebody asked.
pub fn desired_nodes(cluster: &Cluster, checkpoint: CheckpointId) -> BTreeSet<NodeId> {
    let Some(found) = cluster.checkpoints.get(&checkpoint) else { return BTreeSet::new() };
    let rollouts: Vec<_> = cluster.rollouts.values().filter(|r| r.checkpoint == checkpoint).collect();
    let wanted = |node: &&Node| {
        is_replicated(cluster, checkpoint, found, node) || rollouts.iter().any(|r| selects(&r.to, node))
    };
    cluster.nodes.values().filter(wanted).map(|node| node.id).collect()
}

/// Whether the policy of its job puts a checkpoint on `node`.
fn is_replicated(cluster: &Cluster, id: CheckpointId, checkpoint: &Checkpoint, node: &Node) -> bool {
    cluster.jobs.get(&checkpoint.manifest.job).is_some_and(|job| {
        let policy = &job.spec.replicate;
        let wanted = match policy.which {
            ReplicateWhich::Each => true,
            ReplicateWhich::Last => job.checkpoint == Some(id),
        };
        wanted && selects(&policy.to, node)
    })
}

fn selects(selector: &NodeSelector, node: &Node) -> bool {
    selector.selects(node.id, &node.labels)
}
