//! Commands about rollouts and pins.

use hatchery_common::{
    field::FieldError,
    id::{CheckpointId, JobId, Name, RolloutId},
    recipe::NodeSelector,
    time::Timestamp,
};

use super::{Command, Decision, check_room, check_selector};
use crate::{
    cluster::{Checkpoint, Cluster, Node, Rollout},
    event::What,
    limits::{RATE_BYTES_PER_SEC_MIN, ROLLOUTS_MAX, WITHDRAWALS_MAX},
    observed::Now,
    rejected::Rejected,
};

/// Put a checkpoint on nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// The rollout's new id.
    pub rollout: RolloutId,
    pub checkpoint: CheckpointId,
    pub to: NodeSelector,
    /// Whether it is to answer for its job there.
    pub activate: bool,
    /// How fast each node may fetch it at most, in bytes per second.
    pub bytes_per_sec_max: Option<u64>,
    pub by: Name,
}

impl Command for Push {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        // The newest push is the newest rollout, also where the clock was set back.
        let newest = cluster.rollouts.values().map(|rollout| rollout.at).max();
        let at = newest.map_or(now.wall, |newest| now.wall.max(Timestamp(newest.0.saturating_add(1))));
        if cluster.rollouts.contains_key(&self.rollout) {
            return Ok(Decision::done([]));
        }
        checkpoint(cluster, self.checkpoint)?;
        check_rate(self.bytes_per_sec_max)?;
        check_nodes(cluster, "to", &self.to)?;
        check_room(cluster.rollouts_in_force().count(), ROLLOUTS_MAX, "current rollouts")?;
        let rollout = Rollout {
            id: self.rollout,
            checkpoint: self.checkpoint,
            to: self.to,
            by: self.by,
            at,
            activate: self.activate,
            bytes_per_sec_max: self.bytes_per_sec_max,
            withdrawn_at: None,
            not_on: Vec::new(),
        };
        Ok(Decision::done([What::RolloutStarted { rollout }.at(at)]))
    }
}

/// Take a rollout back.
#[derive(Clone, Debug, PartialEq)]
pub struct Withdraw {
    pub rollout: RolloutId,
    /// From which of its nodes.
    pub from: NodeSelector,
    pub by: Name,
}

impl Command for Withdraw {
    type Outcome = RolloutId;

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision<RolloutId>, Rejected> {
        withdraw(cluster, self.rollout, self.from, self.by, now.wall)
    }
}

/// What was taken back last is the newest of the history, also where the clock was set back.
fn withdraw(
    cluster: &Cluster,
    id: RolloutId,
    from: NodeSelector,
    by: Name,
    at: Timestamp,
) -> Result<Decision<RolloutId>, Rejected> {
    let rollout = cluster.rollouts.get(&id);
    let rollout = rollout.ok_or_else(|| Rejected::NotFound { what: "rollout", id: id.to_string() })?;
    check_nodes(cluster, "from", &from)?;
    let is_done = rollout.withdrawn_at.is_some() || rollout.not_on.contains(&from);
    if !is_done && from != NodeSelector::All {
        check_room(rollout.not_on.len(), WITHDRAWALS_MAX, "partial rollbacks of one rollout")?;
    }
    let newest = cluster.rollouts.values().filter_map(|rollout| rollout.withdrawn_at).max();
    let at = newest.map_or(at, |newest| at.max(Timestamp(newest.0.saturating_add(1))));
    let event = What::RolloutWithdrawn { rollout: id, from, by }.at(at);
    Ok(Decision { events: (!is_done).then_some(event).into_iter().collect(), outcome: id })
}

/// Take the newest activating rollout of a job back.
#[derive(Clone, Debug, PartialEq)]
pub struct RollBack {
    pub job: JobId,
    /// From which nodes: the newest that reaches one of them.
    pub from: NodeSelector,
    pub by: Name,
}

impl Command for RollBack {
    type Outcome = RolloutId;

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision<RolloutId>, Rejected> {
        let Self { job: id, from, by } = self;
        let at = now.wall;
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
}

/// Want a checkpoint kept, or no longer.
#[derive(Clone, Debug, PartialEq)]
pub struct Pin {
    pub checkpoint: CheckpointId,
    /// Whether it is to be kept.
    pub is_pinned: bool,
    pub by: Name,
}

impl Command for Pin {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { checkpoint: id, is_pinned, by } = self;
        let at = now.wall;
        let known = checkpoint(cluster, id)?;
        let event = What::PinChanged { checkpoint: id, job: known.manifest.job, is_pinned, by }.at(at);
        Ok(Decision::done((known.is_pinned != is_pinned).then_some(event)))
    }
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
