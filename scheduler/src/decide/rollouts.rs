//! Rollouts and pins: what people want of checkpoints.

use hatchery_common::{
    field::check_range,
    id::{CheckpointId, JobId, Name, RolloutId},
    recipe::NodeSelector,
    time::Timestamp,
};

use super::{Decision, Outcome, check_room, check_selector};
use crate::{
    change::Change,
    cluster::{Checkpoint, Cluster, Rollout},
    limits::{RATE_BYTES_PER_SEC_MIN, ROLLOUTS_MAX},
    request::Rejected,
};

pub(super) fn push(cluster: &Cluster, rollout: Rollout) -> Result<Decision, Rejected> {
    if cluster.rollouts.contains_key(&rollout.id) {
        return Ok(Decision::done([]));
    }
    checkpoint(cluster, rollout.checkpoint)?;
    let rate = rollout.bytes_per_sec_max.unwrap_or(u64::MAX);
    check_range("bytes_per_sec_max", rate, RATE_BYTES_PER_SEC_MIN, u64::MAX)?;
    check_selector("to", &rollout.to)?;
    if let NodeSelector::Nodes(nodes) = &rollout.to {
        for node in nodes {
            super::node(cluster, *node)?;
        }
    }
    check_room(cluster.rollouts.len(), ROLLOUTS_MAX, "rollouts")?;
    Ok(Decision::done([Change::RolloutStarted { rollout }]))
}

pub(super) fn withdraw(
    cluster: &Cluster,
    id: RolloutId,
    by: Name,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    let rollout = cluster.rollouts.get(&id);
    let rollout = rollout.ok_or_else(|| Rejected::NotFound { what: "rollout", id: id.to_string() })?;
    let change = Change::RolloutWithdrawn { rollout: id, by, at };
    Ok(Decision {
        changes: rollout.withdrawn_at.is_none().then_some(change).into_iter().collect(),
        outcome: Outcome::Withdrawn { rollout: id },
    })
}

pub(super) fn roll_back(cluster: &Cluster, id: JobId, by: Name, at: Timestamp) -> Result<Decision, Rejected> {
    let job = super::job(cluster, id)?;
    match cluster.activations(id).last() {
        Some(newest) => withdraw(cluster, newest.id, by, at),
        None => Err(Rejected::NothingActivated { job: job.spec.name.clone() }),
    }
}

pub(super) fn pin(
    cluster: &Cluster,
    id: CheckpointId,
    is_pinned: bool,
    by: Name,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    let known = checkpoint(cluster, id)?;
    let change = Change::PinChanged { checkpoint: id, job: known.manifest.job, is_pinned, by, at };
    Ok(Decision::done((known.is_pinned != is_pinned).then_some(change)))
}

fn checkpoint(cluster: &Cluster, id: CheckpointId) -> Result<&Checkpoint, Rejected> {
    let known = cluster.checkpoints.get(&id);
    known.ok_or_else(|| Rejected::NotFound { what: "checkpoint", id: id.to_string() })
}
