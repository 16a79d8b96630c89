//! What each node is to do: the attempts that it has leases for and the checkpoints that it is to hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hatchery_common::{
    device::DeviceKind,
    id::{CheckpointId, NodeId},
    recipe::{JobSpec, RawTrainSpec, ReplicateWhich, TrainSpec},
    session::{AssignedAttempt, Assignment},
};

use crate::{
    cluster::{Checkpoint, Cluster, Job, JobPhase, Node, Rollout},
    limits::CHECKPOINTS_ASSIGNED_MAX,
    rollout::{active, selects},
};

/// Everything that `node` is to do. Nothing, for a node that is not in the fleet.
pub fn assignment(cluster: &Cluster, node: NodeId, lease: Duration) -> Assignment {
    let Some(node) = cluster.nodes.get(&node) else {
        return Assignment { lease, ..Assignment::default() };
    };
    let attempts = cluster.jobs.values().filter_map(|job| attempt(job, node.id)).collect();
    let checkpoints = held(cluster, node);
    let held: BTreeSet<CheckpointId> = checkpoints.iter().copied().collect();
    let mut active = active(cluster, node);
    active.retain(|_, checkpoint| held.contains(checkpoint));
    let bytes_per_sec_max = rates(cluster, node);
    Assignment { lease, attempts, unreadable: Vec::new(), checkpoints, active, bytes_per_sec_max }
}

/// How fast `node` may fetch what somebody pushed to it with a limit. Of several limits the newest counts.
fn rates(cluster: &Cluster, node: &Node) -> BTreeMap<CheckpointId, u64> {
    let mut rollouts: Vec<&Rollout> =
        cluster.rollouts.values().filter(|rollout| rollout.reaches(node)).collect();
    rollouts.sort_by_key(|rollout| (rollout.at, rollout.id));
    let mut rates = BTreeMap::new();
    for rollout in rollouts {
        match rollout.bytes_per_sec_max {
            Some(rate) => drop(rates.insert(rollout.checkpoint, rate)),
            None => drop(rates.remove(&rollout.checkpoint)),
        }
    }
    rates
}

/// The checkpoints that `node` is to hold, oldest first, and never more than [`CHECKPOINTS_ASSIGNED_MAX`].
fn held(cluster: &Cluster, node: &Node) -> Vec<CheckpointId> {
    let rollouts = cluster.rollouts.values().filter(|rollout| rollout.reaches(node));
    let pushed: BTreeSet<CheckpointId> = rollouts.map(|rollout| rollout.checkpoint).collect();
    let leases = cluster.jobs.values().filter_map(|job| job.lease.as_ref());
    let resumed: BTreeSet<CheckpointId> =
        leases.filter(|lease| lease.node == node.id).filter_map(|lease| lease.resume_from).collect();
    let mut held: Vec<(CheckpointId, &Checkpoint)> = cluster
        .checkpoints
        .iter()
        .map(|(id, checkpoint)| (*id, checkpoint))
        .filter(|(id, checkpoint)| pushed.contains(id) || is_replicated(cluster, *id, checkpoint, node))
        .collect();
    let age = |(id, checkpoint): &(CheckpointId, &Checkpoint)| {
        (checkpoint.committed_at, checkpoint.manifest.step, *id)
    };
    let surplus = held.len().saturating_sub(CHECKPOINTS_ASSIGNED_MAX);
    if surplus > 0 {
        let active: BTreeSet<CheckpointId> = active(cluster, node).into_values().collect();
        let is_needed =
            |id: &CheckpointId| pushed.contains(id) || resumed.contains(id) || active.contains(id);
        held.sort_by_key(|one| (is_needed(&one.0), age(one)));
        held.drain(..surplus);
    }
    held.sort_by_key(age);
    held.into_iter().map(|(id, _)| id).collect()
}

fn attempt(job: &Job, node: NodeId) -> Option<AssignedAttempt> {
    let lease = job.lease.as_ref().filter(|lease| lease.node == node)?;
    Some(AssignedAttempt {
        id: job.attempt(),
        spec: JobSpec { train: train(job, lease.device.kind), ..job.spec.clone() },
        device: lease.device,
        resume_from: lease.resume_from,
        stop: job.phase == JobPhase::Cancelling || job.hand_over.is_some(),
    })
}

/// How the attempt trains: as was submitted, in more parts where it ran out of memory.
fn train(job: &Job, kind: DeviceKind) -> TrainSpec {
    let submitted = &job.spec.train;
    let parts = RawTrainSpec { accumulate: job.parts_on(kind), ..submitted.raw().clone() };
    TrainSpec::new(parts).unwrap_or_else(|_| submitted.clone())
}

/// The nodes that are to hold each checkpoint, by its job's policy or because somebody asked: what the assignments say.
pub fn desired_nodes(cluster: &Cluster) -> BTreeMap<CheckpointId, BTreeSet<NodeId>> {
    let mut desired: BTreeMap<CheckpointId, BTreeSet<NodeId>> = BTreeMap::new();
    for node in cluster.nodes.values() {
        for checkpoint in held(cluster, node) {
            desired.entry(checkpoint).or_default().insert(node.id);
        }
    }
    desired
}

/// Whether the policy of its job puts a checkpoint on `node`.
fn is_replicated(cluster: &Cluster, id: CheckpointId, checkpoint: &Checkpoint, node: &Node) -> bool {
    cluster.jobs.get(&checkpoint.manifest.job).is_some_and(|job| {
        let policy = &job.spec.replicate;
        let wanted = match policy.which {
            ReplicateWhich::Each => true,
            ReplicateWhich::Last => job.checkpoint == Some(id),
            ReplicateWhich::Best => job.best == Some(id),
        };
        wanted && selects(&policy.to, node)
    })
}
