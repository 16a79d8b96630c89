//! What the holder of a lease says: a checkpoint is complete, the attempt is over. Everyone else is fenced off: I3.
//!
//! One thing of an attempt that has lost its lease may still be used: a checkpoint that is further than all that came
//! since. Its node was cut off and kept it; steps follow from the job alone, so it is what the job would have come to.

use hatchery_common::{
    checkpoint::CheckpointManifest,
    field::FieldError,
    id::{Epoch, JobId, NodeId},
    self_test::SelfTest,
    time::Timestamp,
    trainer::Ending,
};

use super::{Decision, Outcome};
use crate::{
    cluster::{Cluster, Job, JobPhase, Lease},
    ending,
    event::Change,
    request::Rejected,
};

/// The lease that `node` holds on `job` under `epoch`.
fn lease(job: &Job, epoch: Epoch, node: NodeId) -> Result<&Lease, Rejected> {
    if job.phase.is_terminal() {
        return Err(Rejected::AlreadyEnded { job: job.id, phase: job.phase.name() });
    }
    match &job.lease {
        Some(lease) if lease.node == node && job.epoch == epoch => Ok(lease),
        _ => Err(Rejected::Fenced { job: job.id, given: epoch, current: job.epoch }),
    }
}

/// Whether what `node` made under `epoch` counts: now, or late, or not at all.
fn standing(job: &Job, epoch: Epoch, node: NodeId) -> Result<Standing, Rejected> {
    match lease(job, epoch, node) {
        Ok(_) => Ok(Standing::Current),
        Err(Rejected::Fenced { .. }) if job.was_held(epoch, node) => Ok(Standing::Late),
        Err(error) => Err(error),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Current,
    Late,
}

/// A checkpoint that a node has.
#[derive(Clone, Copy)]
pub(super) struct Offer {
    pub(super) job: JobId,
    pub(super) epoch: Epoch,
    pub(super) step: u64,
}

pub(super) fn offer(
    cluster: &Cluster,
    node: NodeId,
    offer: Offer,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    let Offer { job: id, epoch, step } = offer;
    let job = super::job(cluster, id)?;
    let taken = || {
        let kept = cluster.checkpoints.values().map(|checkpoint| &checkpoint.manifest);
        let kept = kept.map(|manifest| (manifest.job, manifest.epoch, manifest.step));
        let retired = cluster.retired.values().map(|retired| (retired.job, retired.epoch, retired.step));
        kept.chain(retired).any(|one| one == (id, epoch, step))
    };
    let standing = standing(job, epoch, node);
    let declined = match &standing {
        Ok(_) if step > job.steps_done() && step <= job.spec.train.raw().steps => None,
        // An agent that missed the answer asks again: committing anew tells it what it missed.
        Ok(_) | Err(Rejected::AlreadyEnded { .. } | Rejected::Fenced { .. }) if taken() => None,
        Ok(_) => Some(format!("the newest checkpoint is of step {}", job.steps_done())),
        Err(error) => Some(error.to_string()),
    };
    let was_held = job.was_held(epoch, node);
    let is_possible = (1..=job.spec.train.raw().steps).contains(&step);
    let declined_late =
        declined.is_some() && was_held && is_possible && !matches!(standing, Ok(Standing::Current));
    let change = Change::CheckpointDeclined { job: id, epoch, node, step, at };
    Ok(Decision {
        changes: declined_late.then_some(change).into_iter().collect(),
        outcome: Outcome::Offered { declined },
    })
}

pub(super) fn commit(
    cluster: &Cluster,
    node: NodeId,
    manifest: Box<CheckpointManifest>,
    self_test: Option<Box<SelfTest>>,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    let job = super::job(cluster, manifest.job)?;
    // An agent that missed the answer asks again, perhaps after it lost its lease: what is committed stays so.
    let id = manifest.id();
    if cluster.checkpoints.contains_key(&id) || cluster.retired.contains_key(&id) {
        return Ok(Decision::done([]));
    }
    let late = standing(job, manifest.epoch, node)? == Standing::Late;
    check_manifest(cluster, job, &manifest)?;
    let ends = manifest.step == job.spec.train.raw().steps || manifest.metrics.early_stop.is_some();
    let waits = matches!(job.phase, JobPhase::Queued | JobPhase::Paused);
    let id = job.id;
    // Nothing runs that would come to the end by itself.
    let end = (ends && waits).then_some(Change::JobEnded { job: id, phase: JobPhase::Completed, at });
    let committed = Change::CheckpointCommitted { manifest, late, self_test, at };
    Ok(Decision::done([committed].into_iter().chain(end)))
}

fn check_manifest(cluster: &Cluster, job: &Job, manifest: &CheckpointManifest) -> Result<(), FieldError> {
    manifest.check()?;
    let train = job.spec.train.raw();
    if manifest.dataset != job.spec.dataset {
        return Err(FieldError::new("dataset", format!("must be the job's, {}", job.spec.dataset)));
    }
    if manifest.model != job.spec.model {
        return Err(FieldError::new("model", "must be the job's"));
    }
    if manifest.block != train.block {
        return Err(FieldError::new("block", format!("must be the job's, {}", train.block)));
    }
    if manifest.step <= job.steps_done() || manifest.step > train.steps {
        let problem = format!(
            "must be above {}, the last checkpoint's step, and at most {}, not {}",
            job.steps_done(),
            train.steps,
            manifest.step
        );
        return Err(FieldError::new("step", problem));
    }
    let is_own = |parent| {
        cluster.checkpoints.get(&parent).is_some_and(|parent| parent.manifest.job == job.id)
            || cluster.retired.get(&parent).is_some_and(|parent| parent.job == job.id)
    };
    if let Some(parent) = manifest.parent
        && job.spec.start_from.is_none_or(|start| start.checkpoint != parent)
        && !is_own(parent)
    {
        return Err(FieldError::new("parent", format!("{parent} is not a checkpoint of this job")));
    }
    Ok(())
}

/// An attempt's end as its node reports it.
pub(super) struct End {
    pub(super) job: JobId,
    pub(super) epoch: Epoch,
    pub(super) ending: Ending,
    pub(super) last_output: String,
}

pub(super) fn ended(cluster: &Cluster, node: NodeId, end: End, at: Timestamp) -> Result<Decision, Rejected> {
    let job = super::job(cluster, end.job)?;
    let lease = lease(job, end.epoch, node)?;
    Ok(Decision::done([ending::ended(cluster, job, lease, &end.ending, &end.last_output, at)]))
}
