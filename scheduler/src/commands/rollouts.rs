//! Rollouts and pins: what people want of checkpoints.

use hatchery_common::{
    field::FieldError,
    id::{CheckpointId, JobId, Name, RolloutId},
    recipe::NodeSelector,
    time::Timestamp,
};

use super::{Decision, Outcome, check_room, check_selector};
use crate::{
    cluster::{Checkpoint, Cluster, Node, Rollout},
    event::Change,
    limits::{RATE_BYTES_PER_SEC_MIN, ROLLOUTS_MAX, WITHDRAWALS_MAX},
    request::Rejected,
};

/// The newest push is the newest rollout, also where the clock was set back.
pub(super) fn push(cluster: &Cluster, mut rollout: Rollout) -> Result<Decision, Rejected> {
    if cluster.rollouts.contains_key(&rollout.id) {
        return Ok(Decision::done([]));
    }
    checkpoint(cluster, rollout.checkpoint)?;
    check_rate(rollout.bytes_per_sec_max)?;
    check_nodes(cluster, "to", &rollout.to)?;
    check_room(cluster.rollouts_in_force().count(), ROLLOUTS_MAX, "current rollouts")?;
    let newest = cluster.rollouts.values().map(|rollout| rollout.at).max();
    rollout.at = newest.map_or(rollout.at, |newest| rollout.at.max(Timestamp(newest.0.saturating_add(1))));
    Ok(Decision::done([Change::RolloutStarted { rollout }]))
}

/// What was taken back last is the newest of the history, also where the clock was set back.
pub(super) fn withdraw(
    cluster: &Cluster,
    id: RolloutId,
    from: NodeSelector,
    by: Name,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    let rollout = cluster.rollouts.get(&id);
    let rollout = rollout.ok_or_else(|| Rejected::NotFound { what: "rollout", id: id.to_string() })?;
    check_nodes(cluster, "from", &from)?;
    let is_done = rollout.withdrawn_at.is_some() || rollout.not_on.contains(&from);
    if !is_done && from != NodeSelector::All {
        check_room(rollout.not_on.len(), WITHDRAWALS_MAX, "partial rollbacks of one rollout")?;
    }
    let newest = cluster.rollouts.values().filter_map(|rollout| rollout.withdrawn_at).max();
    let at = newest.map_or(at, |newest| at.max(Timestamp(newest.0.saturating_add(1))));
    let change = Change::RolloutWithdrawn { rollout: id, from, by, at };
    Ok(Decision {
        changes: (!is_done).then_some(change).into_iter().collect(),
        outcome: Outcome::Withdrawn { rollout: id },
    })
}

pub(super) fn roll_back(
    cluster: &Cluster,
    id: JobId,
    from: NodeSelector,
    by: Name,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    let job = super::job(cluster, id)?;
    check_nodes(cluster, "from", &from)?;
    let nodes: Vec<&Node> =
        cluster.nodes.values().filter(|node| from.selects(node.id, &node.labels)).collect();
    let activations = cluster.activations(id);
    // One that reaches no node any more changes nothing when it is taken back, so it comes last.
    let reaching = activations.iter().rfind(|rollout| nodes.iter().any(|node| rollout.reaches(node)));
    let left = || activations.last().filter(|_| from == NodeSelector::All);
    match reaching.or_else(left) {
        Some(newest) => withdraw(cluster, newest.id, from, by, at),
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

fn check_nodes(cluster: &Cluster, field: &str, selector: &NodeSelector) -> Result<(), Rejected> {
    check_selector(field, selector)?;
    if let NodeSelector::Nodes(nodes) = selector {
        for node in nodes {
            super::node(cluster, *node)?;
        }
    }
    Ok(())
}

fn check_rate(rate: Option<u64>) -> Result<(), FieldError> {
    match rate {
        Some(rate) if rate < RATE_BYTES_PER_SEC_MIN => {
            let wrong = format!("must be at least {RATE_BYTES_PER_SEC_MIN} bytes per second, not {rate}");
            Err(FieldError::new("bytes_per_sec_max", wrong))
        }
        _ => Ok(()),
    }
}

fn checkpoint(cluster: &Cluster, id: CheckpointId) -> Result<&Checkpoint, Rejected> {
    let known = cluster.checkpoints.get(&id);
    known.ok_or_else(|| Rejected::NotFound { what: "checkpoint", id: id.to_string() })
}
