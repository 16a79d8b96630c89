//! Which checkpoints are kept, and which have had their time.

use std::collections::{BTreeMap, BTreeSet};

use hatchery_common::{
    id::{CheckpointId, JobId},
    time::Timestamp,
};

use crate::{
    cluster::Cluster,
    event::{Event, What},
};

/// The checkpoints that go now: those that their job's policy does not keep, and that nobody needs. Pure, and at rest
/// after one step.
pub fn retire(cluster: &Cluster, at: Timestamp) -> Vec<Event> {
    let limited = |job: &JobId| cluster.jobs.get(job).filter(|job| job.spec.retain.last.is_some());
    if !cluster.jobs.keys().any(|job| limited(job).is_some()) {
        return Vec::new();
    }
    let mut lines: BTreeMap<JobId, Vec<(u64, CheckpointId)>> = BTreeMap::new();
    for (id, checkpoint) in &cluster.checkpoints {
        let manifest = &checkpoint.manifest;
        if limited(&manifest.job).is_some() {
            lines.entry(manifest.job).or_default().push((manifest.step, *id));
        }
    }
    let needed = needed(cluster);
    let mut events = Vec::new();
    for (job, mut line) in lines {
        let Some(retain) = limited(&job).map(|job| job.spec.retain) else { continue };
        let last = retain.last.map_or(usize::MAX, |last| last.get() as usize);
        line.sort_unstable();
        line.truncate(line.len().saturating_sub(last));
        line.retain(|(step, id)| {
            let is_landmark = retain.every > 0 && step.is_multiple_of(retain.every);
            !is_landmark && !needed.contains(id)
        });
        events.extend(
            line.into_iter().map(|(_, checkpoint)| What::CheckpointRetired { checkpoint, job }.at(at)),
        );
    }
    events
}

/// What is kept whatever a policy says: each job's newest and best, what is pinned, what a rollout in force names, what an
/// attempt goes on from, and what a job that has not ended begins with.
fn needed(cluster: &Cluster) -> BTreeSet<CheckpointId> {
    let pinned = cluster.checkpoints.iter().filter(|(_, checkpoint)| checkpoint.is_pinned).map(|(id, _)| *id);
    let rolled_out = cluster.rollouts_in_force().map(|rollout| rollout.checkpoint);
    let of_jobs = cluster.jobs.values().flat_map(|job| {
        let begins_with = job.spec.start_from.filter(|_| !job.phase.is_terminal());
        let goes_on_from = job.lease.as_ref().and_then(|lease| lease.resume_from);
        [job.checkpoint, job.best, goes_on_from, begins_with.map(|start| start.checkpoint)]
    });
    pinned.chain(rolled_out).chain(of_jobs.flatten()).collect()
}
