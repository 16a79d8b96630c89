//! What the holder of a lease says: a checkpoint is complete, the attempt is over. Everyone else is fenced off: I3.

use hatchery_common::{
    checkpoint::CheckpointManifest,
    field::FieldError,
    id::{Epoch, JobId, NodeId},
    time::Timestamp,
    trainer::Ending,
};

use super::Decision;
use crate::{
    change::Change,
    cluster::{Cluster, Job, Lease},
    ending,
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

pub(super) fn commit(
    cluster: &Cluster,
    node: NodeId,
    manifest: Box<CheckpointManifest>,
    at: Timestamp,
) -> Result<Decision, Rejected> {
    let job = super::job(cluster, manifest.job)?;
    // An agent that missed the answer asks again, perhaps after it lost its lease: what is committed stays so.
    if cluster.checkpoints.contains_key(&manifest.id()) {
        return Ok(Decision::done([]));
    }
    lease(job, manifest.epoch, node)?;
    check_manifest(cluster, job, &manifest)?;
    Ok(Decision::done([Change::CheckpointCommitted { manifest, at }]))
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
            "must be above {}, the last checkpoint's, and at most {}, not {}",
            job.steps_done(),
            train.steps,
            manifest.step
        );
        return Err(FieldError::new("step", problem));
    }
    if let Some(parent) = manifest.parent
        && job.spec.start_from.is_none_or(|start| start.checkpoint != parent)
        && cluster.checkpoints.get(&parent).is_none_or(|parent| parent.manifest.job != job.id)
    {
        return Err(FieldError::new("parent", format!("{parent} is no checkpoint of this job")));
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
