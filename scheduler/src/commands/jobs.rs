//! Commands about datasets and jobs.

use hatchery_common::{
    dataset::DatasetManifest,
    digest::Digest,
    field::FieldError,
    id::{JobId, Name, RequestId},
    model::{ModelConfig, RawModelConfig},
    recipe::{JobSpec, Priority, StartFrom, StartHow},
    time::Timestamp,
};

use super::{Command, Decision, check_count, check_labels, check_room, check_selector};
use crate::{
    cluster::{Cluster, HandOver, Job, JobPhase},
    event::What,
    limits::{AFTER_MAX, DATASETS_MAX, JOBS_WAITING_MAX, NODES_NAMED_MAX},
    observed::Now,
    rejected::Rejected,
};

/// Register a dataset whose blobs are all here (the caller has checked).
#[derive(Clone, Debug, PartialEq)]
pub struct RegisterDataset {
    pub manifest: DatasetManifest,
}

impl Command for RegisterDataset {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { manifest } = self;
        let at = now.wall;
        if cluster.datasets.contains_key(&manifest.id()) {
            return Ok(Decision::done([]));
        }
        check_room(cluster.datasets.len(), DATASETS_MAX, "datasets")?;
        Ok(Decision::done([What::DatasetRegistered { manifest }.at(at)]))
    }
}

/// Submit a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Submit {
    /// The request's id: I2.
    pub request: RequestId,
    /// The job's new id, if it becomes one.
    pub job: JobId,
    /// Digest of the body, by which a repeated request is known.
    pub body: Digest,
    pub spec: Box<JobSpec>,
    pub submitter: Name,
}

impl Command for Submit {
    type Outcome = Submitted;

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision<Submitted>, Rejected> {
        let at = now.wall;
        if let Some(&(body, job)) = cluster.requests.get(&self.request) {
            if body != self.body {
                return Err(Rejected::RequestReused { request: self.request, job });
            }
            return Ok(Decision { events: Vec::new(), outcome: Submitted { job, duplicate: true } });
        }
        check_spec(cluster, &self.spec)?;
        if cluster.jobs.contains_key(&self.job) {
            return Err(FieldError::new("job", format!("{} already exists; draw a new id", self.job)).into());
        }
        let waiting = cluster.jobs.values().filter(|job| job.phase == JobPhase::Queued).count();
        check_room(waiting, JOBS_WAITING_MAX, "jobs waiting")?;
        let Self { request, job, body, spec, submitter } = self;
        Ok(Decision {
            events: vec![What::JobSubmitted { job, request, body, spec, submitter }.at(at)],
            outcome: Submitted { job, duplicate: false },
        })
    }
}

/// A job is in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    pub job: JobId,
    /// Whether this same request had made it before: I2.
    pub duplicate: bool,
}

/// Model and recipe were checked when they were read; here is what only the fleet can know.
fn check_spec(cluster: &Cluster, spec: &JobSpec) -> Result<(), FieldError> {
    let dataset = cluster.datasets.get(&spec.dataset).ok_or_else(|| {
        let problem = format!("there is no dataset {}; upload it again", spec.dataset);
        FieldError::new("dataset", problem)
    })?;
    spec.train.split(dataset.manifest.corpus_bytes())?;
    check_count("devices.nodes", spec.devices.nodes.len(), NODES_NAMED_MAX)?;
    check_count("devices.exclude", spec.devices.exclude.len(), NODES_NAMED_MAX)?;
    check_after(cluster, spec)?;
    check_labels("devices.labels", &spec.devices.labels)?;
    check_selector("replicate.to", &spec.replicate.to)?;
    spec.start_from.map_or(Ok(()), |start| check_start(cluster, spec, start))
}

/// What a job comes after is there and may still complete.
fn check_after(cluster: &Cluster, spec: &JobSpec) -> Result<(), FieldError> {
    check_count("queue.after", spec.queue.after.len(), AFTER_MAX)?;
    for id in &spec.queue.after {
        let Some(job) = cluster.jobs.get(id) else {
            return Err(FieldError::new("queue.after", format!("there is no job {id}")));
        };
        if job.phase.is_terminal() && job.phase != JobPhase::Completed {
            let problem = format!("job {id} is {} and will never complete", job.phase.name());
            return Err(FieldError::new("queue.after", problem));
        }
    }
    Ok(())
}

/// Whether a job by `spec` can begin with what it wants to.
fn check_start(cluster: &Cluster, spec: &JobSpec, start: StartFrom) -> Result<(), FieldError> {
    let wrong = |problem: String| Err(FieldError::new("start_from", problem));
    let Some(checkpoint) = cluster.checkpoints.get(&start.checkpoint) else {
        return wrong(format!("there is no checkpoint {}", start.checkpoint));
    };
    let manifest = &checkpoint.manifest;
    let raw = |model: &ModelConfig| RawModelConfig { dropout: 0.0, ..model.raw().clone() };
    if start.how == StartHow::FineTune {
        // Dropout is no matter of shape.
        return if raw(&manifest.model) == raw(&spec.model) {
            Ok(())
        } else {
            wrong("its model differs in shape from the job's".to_owned())
        };
    }
    let train = spec.train.raw();
    if manifest.model != spec.model || manifest.dataset != spec.dataset {
        return wrong(
            "a job can continue it only with the same dataset and model; otherwise fine-tune".to_owned(),
        );
    }
    if manifest.step >= train.steps {
        return wrong(format!(
            "it has {} steps already; set train.steps above {}",
            manifest.step, train.steps
        ));
    }
    match manifest.metrics.early_stop {
        Some(validations) if (1..=validations).contains(&train.early_stop) => wrong(format!(
            "its run ended early, after {validations} validations without improvement; raise \
             train.early_stop, or set it to 0"
        )),
        _ => Ok(()),
    }
}

/// Cancel a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Cancel {
    pub job: JobId,
    pub by: Name,
}

impl Command for Cancel {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { job, by } = self;
        let at = now.wall;
        let phase = &super::job(cluster, job)?.phase;
        match phase {
            JobPhase::Queued | JobPhase::Paused => {
                Ok(Decision::done([What::JobEnded { job, phase: JobPhase::Cancelled }.at(at)]))
            }
            JobPhase::Running => Ok(Decision::done([What::CancelRequested { job, by }.at(at)])),
            JobPhase::Cancelling => Ok(Decision::done([])),
            ended => Err(Rejected::AlreadyEnded { job, phase: ended.name() }),
        }
    }
}

/// Pause a job, through a checkpoint if it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Pause {
    pub job: JobId,
    pub by: Name,
}

impl Command for Pause {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { job: id, by } = self;
        let at = now.wall;
        let job = super::job(cluster, id)?;
        match (&job.phase, &job.hand_over) {
            (JobPhase::Queued, _) => Ok(Decision::done([What::JobPaused { job: id, by }.at(at)])),
            (JobPhase::Paused, _) | (JobPhase::Running, Some(HandOver::Pause { .. })) => {
                Ok(Decision::done([]))
            }
            (JobPhase::Running, _) => Ok(hand_over(id, HandOver::Pause { by }, at)),
            _ => Err(wrong_phase(job, "paused")),
        }
    }
}

/// Let a paused job wait for a device again.
#[derive(Clone, Debug, PartialEq)]
pub struct Resume {
    pub job: JobId,
    pub by: Name,
}

impl Command for Resume {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { job: id, by } = self;
        let at = now.wall;
        let job = super::job(cluster, id)?;
        match (&job.phase, &job.hand_over) {
            (JobPhase::Paused, _) => Ok(Decision::done([What::JobResumed { job: id, by }.at(at)])),
            // Its trainer is stopping already: it waits for a device then.
            (JobPhase::Running, Some(HandOver::Pause { .. })) => {
                Ok(hand_over(id, HandOver::Requeue { by }, at))
            }
            (JobPhase::Queued | JobPhase::Running, _) => Ok(Decision::done([])),
            _ => Err(wrong_phase(job, "resumed")),
        }
    }
}

/// Send a running job back to the queue, through a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Requeue {
    pub job: JobId,
    pub by: Name,
}

impl Command for Requeue {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { job: id, by } = self;
        let at = now.wall;
        let job = super::job(cluster, id)?;
        match (&job.phase, &job.hand_over) {
            (JobPhase::Queued, _) | (JobPhase::Running, Some(_)) => Ok(Decision::done([])),
            (JobPhase::Running, None) => Ok(hand_over(id, HandOver::Requeue { by }, at)),
            _ => Err(wrong_phase(job, "requeued")),
        }
    }
}

fn hand_over(job: JobId, why: HandOver, at: Timestamp) -> Decision {
    Decision::done([What::HandOverRequested { job, why }.at(at)])
}

fn wrong_phase(job: &Job, action: &'static str) -> Rejected {
    if job.phase.is_terminal() {
        Rejected::AlreadyEnded { job: job.id, phase: job.phase.name() }
    } else {
        Rejected::WrongPhase { job: job.id, phase: job.phase.name(), action }
    }
}

/// Give a job another priority.
#[derive(Clone, Debug, PartialEq)]
pub struct SetPriority {
    pub job: JobId,
    pub priority: Priority,
    pub by: Name,
}

impl Command for SetPriority {
    type Outcome = ();

    fn decide(self, cluster: &Cluster, now: Now) -> Result<Decision, Rejected> {
        let Self { job: id, priority, by } = self;
        let at = now.wall;
        let job = super::job(cluster, id)?;
        if job.phase.is_terminal() {
            return Err(Rejected::AlreadyEnded { job: id, phase: job.phase.name() });
        }
        let event = What::PriorityChanged { job: id, priority, by }.at(at);
        Ok(Decision::done((job.spec.queue.priority != priority).then_some(event)))
    }
}
