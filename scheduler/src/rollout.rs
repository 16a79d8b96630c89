//! Which checkpoint answers for its job on which node.
//!
//! Of a job's checkpoints at most one is active on a node: the one that answers there when somebody asks the job. It is
//! that of the newest activating rollout in force that selects the node, else the one that the job's own policy puts
//! there last. So taking a rollout back makes active again what was so before it.

use std::collections::BTreeMap;

use hatchery_common::{
    id::{CheckpointId, JobId, RolloutId},
    recipe::{NodeSelector, ReplicateWhich},
};

use crate::cluster::{Cluster, Job, Node, Rollout};

impl Cluster {
    /// The rollouts that nobody has taken back.
    pub fn rollouts_in_force(&self) -> impl Iterator<Item = &Rollout> {
        self.rollouts.values().filter(|rollout| rollout.withdrawn_at.is_none())
    }

    /// The activating rollouts of `job` in force, the newest last.
    pub fn activations(&self, job: JobId) -> Vec<&Rollout> {
        let of_job = |rollout: &&Rollout| {
            let checkpoint = self.checkpoints.get(&rollout.checkpoint);
            rollout.activate && checkpoint.is_some_and(|checkpoint| checkpoint.manifest.job == job)
        };
        let mut all: Vec<&Rollout> = self.rollouts_in_force().filter(of_job).collect();
        all.sort_by_key(|rollout| order(rollout));
        all
    }
}

impl Rollout {
    /// Whether it is in force on `node`.
    pub fn reaches(&self, node: &Node) -> bool {
        let taken_back = || self.not_on.iter().any(|from| selects(from, node));
        self.withdrawn_at.is_none() && selects(&self.to, node) && !taken_back()
    }
}

impl Job {
    /// Of the checkpoints that the job's policy puts on nodes, the one that is to be active there.
    pub fn active_by_policy(&self) -> Option<CheckpointId> {
        match self.spec.replicate.which {
            ReplicateWhich::Each | ReplicateWhich::Last => self.checkpoint,
            ReplicateWhich::Best => self.best,
        }
    }
}

/// For each job the checkpoint that is to be active on `node`.
pub fn active(cluster: &Cluster, node: &Node) -> BTreeMap<JobId, CheckpointId> {
    let by_policy = cluster.jobs.values().filter(|job| selects(&job.spec.replicate.to, node));
    let mut active: BTreeMap<JobId, CheckpointId> =
        by_policy.filter_map(|job| Some((job.id, job.active_by_policy()?))).collect();
    let mut newest: BTreeMap<JobId, &Rollout> = BTreeMap::new();
    for rollout in cluster.rollouts.values().filter(|rollout| rollout.activate && rollout.reaches(node)) {
        let Some(checkpoint) = cluster.checkpoints.get(&rollout.checkpoint) else { continue };
        let newest = newest.entry(checkpoint.manifest.job).or_insert(rollout);
        if order(newest) < order(rollout) {
            *newest = rollout;
        }
    }
    active.extend(newest.into_iter().map(|(job, rollout)| (job, rollout.checkpoint)));
    active
}

/// Two rollouts of one millisecond have an order all the same.
pub(crate) fn order(rollout: &Rollout) -> (hatchery_common::time::Timestamp, RolloutId) {
    (rollout.at, rollout.id)
}

pub(crate) fn selects(selector: &NodeSelector, node: &Node) -> bool {
    selector.selects(node.id, &node.labels)
}
