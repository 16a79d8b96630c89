//! Rollouts as people see them: those that somebody asked for, and for each job what its own policy puts on nodes.
//!
//! What a policy wishes is no record of its own: it follows from the job and from the checkpoints that are committed, also
//! for nodes that join later, and a new checkpoint takes the place of the one before with nothing to take back.

use hatchery_common::{
    id::{CheckpointId, JobId, Name},
    recipe::NodeSelector,
    session::ReplicaState,
    time::Timestamp,
    view::{NowActiveView, RolloutView, WithdrawnView},
};
use hatchery_scheduler::{Cluster, Job, Node, Rollout, active};

use crate::{
    core::handle::Snapshot,
    views::{event::selected, job_name, replicas},
};

/// Most sets of nodes from which a rollout was taken back that are told one by one.
const EXCEPTIONS_MAX: usize = 8;
/// Most rollouts that were taken back that are shown when they are asked for: the newest.
const WITHDRAWN_MAX: usize = 1000;

/// The rollouts in force, newest first; `all`: the newest of those that were taken back too.
pub(crate) fn list(snapshot: &Snapshot, all: bool) -> Vec<RolloutView> {
    let cluster = &snapshot.cluster;
    let withdrawn = cluster.rollouts.values().filter(|rollout| all && rollout.withdrawn_at.is_some());
    let mut withdrawn: Vec<&Rollout> = withdrawn.collect();
    withdrawn.sort_by_key(|rollout| std::cmp::Reverse((rollout.at, rollout.id)));
    withdrawn.truncate(WITHDRAWN_MAX);
    let asked = cluster.rollouts_in_force().chain(withdrawn).map(|rollout| asked_for(snapshot, rollout));
    let mut views: Vec<RolloutView> =
        asked.chain(cluster.jobs.values().filter_map(|job| by_policy(snapshot, job))).collect();
    views.sort_by_key(|view| std::cmp::Reverse((view.at, view.id)));
    views
}

/// A rollout that was taken back, and what is to answer now where it was.
pub(crate) fn withdrawn(snapshot: &Snapshot, rollout: &Rollout, from: &NodeSelector) -> WithdrawnView {
    let view = asked_for(snapshot, rollout);
    let nodes = selected_nodes(&snapshot.cluster, &rollout.to);
    let nodes = nodes.filter(|node| from.selects(node.id, &node.labels));
    let now = nodes.map(|node| NowActiveView {
        node: node.id,
        node_name: node.name.clone(),
        checkpoint: active(&snapshot.cluster, node).get(&view.job).copied(),
    });
    let mut active: Vec<NowActiveView> = now.collect();
    active.sort_by(|a, b| a.node_name.cmp(&b.node_name));
    WithdrawnView { active, rollout: view }
}

fn asked_for(snapshot: &Snapshot, rollout: &Rollout) -> RolloutView {
    RolloutView {
        id: Some(rollout.id),
        by: Some(rollout.by.clone()),
        activate: rollout.activate,
        bytes_per_sec_max: rollout.bytes_per_sec_max,
        withdrawn_at: rollout.withdrawn_at,
        ..view(snapshot, rollout.checkpoint, &rollout.to, &rollout.not_on, rollout.at)
    }
}

/// What a job's policy puts on nodes, if there is anything. Of one that keeps each checkpoint there, the newest is shown.
fn by_policy(snapshot: &Snapshot, job: &Job) -> Option<RolloutView> {
    let to = &job.spec.replicate.to;
    let id = job.active_by_policy().filter(|_| *to != NodeSelector::None)?;
    let at = snapshot.cluster.checkpoints.get(&id)?.committed_at;
    Some(view(snapshot, id, to, &[], at))
}

fn view(
    snapshot: &Snapshot,
    id: CheckpointId,
    to: &NodeSelector,
    not_on: &[NodeSelector],
    at: Timestamp,
) -> RolloutView {
    let cluster = &snapshot.cluster;
    let (job, step) = origin(cluster, id);
    let (mut nodes, mut ready, mut on, mut failed) = (0, 0, 0, 0);
    let left = |node: &&Node| !not_on.iter().any(|from| from.selects(node.id, &node.labels));
    for node in selected_nodes(cluster, to).filter(left) {
        nodes += 1;
        let Some(replica) = replicas(snapshot, node.id).find(|replica| replica.checkpoint == id) else {
            continue;
        };
        match replica.state {
            ReplicaState::Ready { .. } => ready += 1,
            ReplicaState::Failed { .. } => failed += 1,
            ReplicaState::Fetching { .. } => {}
        }
        on += u32::from(replica.active);
    }
    RolloutView {
        id: None,
        job,
        job_name: Name::from_lossy(&job_name(cluster, job)),
        checkpoint: id,
        step,
        to: not_on_all(cluster, to, not_on),
        by: None,
        at,
        activate: true,
        bytes_per_sec_max: None,
        withdrawn_at: None,
        nodes,
        ready,
        active: on,
        failed,
    }
}

/// Where, in words: never more than fits into an answer, whatever was taken back from wherever.
fn not_on_all(cluster: &Cluster, to: &NodeSelector, not_on: &[NodeSelector]) -> String {
    let named = not_on.iter().take(EXCEPTIONS_MAX).map(|from| selected(cluster, from));
    let text = named.fold(selected(cluster, to), |to, from| format!("{to} but {from}"));
    match not_on.len().checked_sub(EXCEPTIONS_MAX) {
        None | Some(0) => text,
        Some(more) => format!("{text} and {more} more"),
    }
}

/// The job that made a checkpoint, and the step, also of one that is kept no longer.
fn origin(cluster: &Cluster, id: CheckpointId) -> (JobId, u64) {
    let kept = cluster.checkpoints.get(&id).map(|one| (one.manifest.job, one.manifest.step));
    let retired = || cluster.retired.get(&id).map(|one| (one.job, one.step));
    kept.or_else(retired).unwrap_or((JobId::from_bytes([0; 16]), 0))
}

fn selected_nodes<'a>(cluster: &'a Cluster, to: &'a NodeSelector) -> impl Iterator<Item = &'a Node> {
    cluster.nodes.values().filter(|node| to.selects(node.id, &node.labels))
}
