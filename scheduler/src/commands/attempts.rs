//! What the holder of a lease says: a checkpoint is complete, the attempt is over. Everyone else is fenced off: I3.
//!
//! One thing of an attempt that has lost its lease may still be used: a checkpoint that is further than all that came
//! since. Its node was cut off and kept it; steps follow from the job alone, so it is what the job would have come to.

use hatchery_common::{
    checkpoint::CheckpointManifest,
    field::FieldError,
    id::{Epoch, JobId, NodeId},
    self_test::SelfTest,
    trainer::Ending,
};

use super::{Command, Decision};
use crate::{
    cluster::{Cluster, Job, JobPhase, Lease},
    ending,
    event::What,
    observed::Now,
    rejected::Rejected,
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

/// Ask whether a checkpoint is wanted, before its bytes are brought. One that is not goes into the job's history.
#[derive(Clone, Debug, PartialEq)]
pub struct OfferCheckpoint {
    /// The node that has it.
    pub node: NodeId,
    pub job: JobId,
    /// The epoch that it was made under.
    pub epoch: Epoch,
    pub step: u64,
}

impl Command for OfferCheckpoint {
    type Outcome = Offered;

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision<Offered>, Rejected> {
        let Self { node, job: id, epoch, step } = self;
        let at = now.wall;
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
        let event = What::CheckpointDeclined { job: id, epoch, node, step }.at(at);
        Ok(Decision {
            events: declined_late.then_some(event).into_iter().collect(),
            outcome: Offered { declined },
        })
    }
}

/// Whether a checkpoint is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// If not, why, for a person.
    pub declined: Option<String>,
}

/// Commit a checkpoint whose blobs are all here and verified (the caller has checked).
#[derive(Clone, Debug, PartialEq)]
pub struct CommitCheckpoint {
    /// The node that asks.
    pub node: NodeId,
    pub manifest: Box<CheckpointManifest>,
    /// What it answered on that node, if it did.
    pub self_test: Option<Box<SelfTest>>,
}

impl Command for CommitCheckpoint {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { node, manifest, self_test } = self;
        let at = now.wall;
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
        let end = (ends && waits).then_some(What::JobEnded { job: id, phase: JobPhase::Completed }.at(at));
        let committed = What::CheckpointCommitted { manifest, late, self_test }.at(at);
        Ok(Decision::done([committed].into_iter().chain(end)))
    }
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

/// An attempt ended on its node.
#[derive(Clone, Debug, PartialEq)]
pub struct EndAttempt {
    /// The node that says so.
    pub node: NodeId,
    pub job: JobId,
    pub epoch: Epoch,
    pub ending: Ending,
    /// The last lines of its stderr.
    pub last_output: String,
}

impl Command for EndAttempt {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { node, job, epoch, ending, last_output } = self;
        let at = now.wall;
        let job = super::job(cluster, job)?;
        let lease = lease(job, epoch, node)?;
        Ok(Decision::done([ending::ended(cluster, job, lease, &ending, &last_output, at)]))
    }
}
