//! Applying events. Nothing is checked here: an event was checked when it was made.

use hatchery_common::{
    id::{Epoch, JobId, Name},
    node::{Inventory, NodeMode},
    recipe::{JobSpec, NodeSelector},
    time::Timestamp,
    trainer::{FailureCause, Metrics},
};

use crate::{
    cluster::{
        Checkpoint, Cluster, Dataset, Failure, HandOver, Holder, Job, JobPhase, Node, RetiredCheckpoint,
    },
    event::{Event, LeaseEnd, What},
    limits::{FAILURES_MAX, HOLDERS_MAX},
};

impl Cluster {
    /// Applies one event. One about something that is not there does nothing but count.
    pub fn evolve(&mut self, event: &Event) {
        self.last_event += 1;
        let at = event.at;
        match &event.what {
            What::TokenCreated { secret, token } => {
                self.tokens.insert(*secret, token.clone());
            }
            What::TokenUsed { secret } => {
                if let Some(token) = self.tokens.get_mut(secret) {
                    token.used_at = Some(at);
                }
            }
            What::CertificateIssued { certificate } => {
                self.certificates.insert(certificate.id, certificate.clone());
            }
            What::CertificateRevoked { certificate } => {
                if let Some(certificate) = self.certificates.get_mut(certificate) {
                    certificate.revoked_at = Some(at);
                }
            }
            What::NodeJoined { node, name, labels } => {
                let (id, name, labels) = (*node, name.clone(), labels.clone());
                let inventory = Inventory::default();
                let mode = NodeMode::Open;
                self.nodes.insert(id, Node { id, name, labels, inventory, joined_at: at, mode });
            }
            What::NodeInventoried { node, inventory, .. } => {
                if let Some(node) = self.nodes.get_mut(node) {
                    node.inventory = (**inventory).clone();
                }
            }
            What::NodeRemoved { node, .. } => {
                self.nodes.remove(node);
                self.speeds.retain(|key, _| key.node != *node);
            }
            What::DatasetRegistered { manifest } => {
                let dataset = Dataset { manifest: manifest.clone(), registered_at: at };
                self.datasets.insert(manifest.id(), dataset);
            }
            What::JobSubmitted { job, request, body, spec, submitter } => {
                self.requests.insert(*request, (*body, *job));
                let start_step = self.start_step(spec);
                let new = Job::new(*job, (**spec).clone(), start_step, submitter.clone(), at);
                self.jobs.insert(*job, new);
            }
            What::RolloutStarted { rollout } => {
                self.rollouts.insert(rollout.id, rollout.clone());
            }
            What::RolloutWithdrawn { rollout, from, .. } => {
                if let Some(rollout) = self.rollouts.get_mut(rollout) {
                    match from {
                        NodeSelector::All => rollout.withdrawn_at = Some(at),
                        some => rollout.not_on.push(some.clone()),
                    }
                }
            }
            What::RolloutForgotten { rollout, .. } => {
                self.rollouts.remove(rollout);
            }
            What::Restored { epoch_floor, .. } => {
                for job in self.jobs.values_mut().filter(|job| !job.phase.is_terminal()) {
                    job.epoch = job.epoch.max(*epoch_floor);
                }
            }
            What::CheckpointCommitted { manifest, late, self_test } => {
                let id = manifest.id();
                let checkpoint = Checkpoint {
                    manifest: (**manifest).clone(),
                    committed_at: at,
                    late: *late,
                    self_test: self_test.as_deref().cloned(),
                    is_pinned: false,
                };
                self.checkpoints.insert(id, checkpoint);
                let best = self.best_checkpoint(manifest.job);
                if let Some(job) = self.jobs.get_mut(&manifest.job) {
                    job.checkpoint = Some(id);
                    job.best = best;
                    job.checkpoint_step = manifest.step;
                    job.metrics = manifest.metrics;
                }
            }
            What::CheckpointRetired { checkpoint: id, .. } => {
                if let Some(checkpoint) = self.checkpoints.remove(id) {
                    let manifest = checkpoint.manifest;
                    let (job, epoch, step) = (manifest.job, manifest.epoch, manifest.step);
                    self.retired.insert(*id, RetiredCheckpoint { job, epoch, step });
                }
            }
            What::PinChanged { checkpoint, is_pinned, .. } => {
                if let Some(checkpoint) = self.checkpoints.get_mut(checkpoint) {
                    checkpoint.is_pinned = *is_pinned;
                }
            }
            // It stands in the history; nothing else comes of it.
            What::CheckpointDeclined { .. } => {}
            What::LeaseGranted { job, epoch, lease } => self.evolve_job(*job, |job| {
                job.phase = JobPhase::Running;
                job.remember_holder(Holder { epoch: *epoch, node: lease.node });
                job.epoch = *epoch;
                job.started_at.get_or_insert(lease.granted_at);
                job.not_before = None;
                job.lease = Some(lease.clone());
            }),
            What::LeaseEnded { job, epoch, why, not_before } => {
                self.evolve_job(*job, |job| job.requeue(*epoch, why, *not_before, at));
            }
            What::CancelRequested { job, .. } => {
                self.evolve_job(*job, |job| {
                    job.phase = JobPhase::Cancelling;
                    job.hand_over = None;
                });
            }
            What::HandOverRequested { job, why, .. } => {
                self.evolve_job(*job, |job| job.hand_over = Some(why.clone()));
            }
            What::JobPaused { job, .. } => self.evolve_job(*job, |job| {
                job.phase = JobPhase::Paused;
                job.not_before = None;
            }),
            What::JobResumed { job, .. } => self.evolve_job(*job, |job| job.phase = JobPhase::Queued),
            What::PriorityChanged { job, priority, .. } => {
                self.evolve_job(*job, |job| job.spec.queue.priority = *priority);
            }
            What::NodeModeChanged { node, mode, .. } => {
                if let Some(node) = self.nodes.get_mut(node) {
                    node.mode = *mode;
                }
            }
            What::SpeedMeasured { key, speed } => {
                self.speeds.insert(*key, *speed);
            }
            What::JobEnded { job, phase } => self.evolve_job(*job, |job| {
                job.phase = phase.clone();
                job.lease = None;
                job.hand_over = None;
                job.not_before = None;
                job.ended_at = Some(at);
            }),
        }
    }

    fn evolve_job(&mut self, job: JobId, step: impl FnOnce(&mut Job)) {
        if let Some(job) = self.jobs.get_mut(&job) {
            step(job);
        }
    }
}

impl Job {
    /// A job just submitted.
    fn new(id: JobId, spec: JobSpec, start_step: u64, submitter: Name, at: Timestamp) -> Self {
        Self {
            id,
            spec,
            submitter,
            submitted_at: at,
            phase: JobPhase::Queued,
            epoch: Epoch(0),
            lease: None,
            hand_over: None,
            started_at: None,
            ended_at: None,
            checkpoint: None,
            start_step,
            best: None,
            checkpoint_step: 0,
            metrics: Metrics::default(),
            holders: Vec::new(),
            failures: Vec::new(),
            not_before: None,
        }
    }

    fn requeue(&mut self, epoch: Epoch, why: &LeaseEnd, not_before: Option<Timestamp>, at: Timestamp) {
        let pauses = matches!(self.hand_over.take(), Some(HandOver::Pause { .. }));
        (self.phase, self.not_before) =
            if pauses { (JobPhase::Paused, None) } else { (JobPhase::Queued, not_before) };
        let lease = self.lease.take();
        if let (LeaseEnd::Failed { cause, message }, Some(lease)) = (why, lease) {
            let (node, device, message) = (lease.node, lease.device, message.clone());
            self.remember_failure(Failure { epoch, node, device, cause: *cause, message, at });
        }
    }

    /// Adds the node of a new epoch. Beyond [`HOLDERS_MAX`] the oldest is forgotten.
    pub fn remember_holder(&mut self, holder: Holder) {
        self.holders.push(holder);
        if self.holders.len() > HOLDERS_MAX {
            self.holders.remove(0);
        }
    }

    /// Adds a failure. Beyond [`FAILURES_MAX`] the oldest one that no rule counts is forgotten; those that are
    /// counted (crashes, memory) end the job long before there are so many.
    pub fn remember_failure(&mut self, failure: Failure) {
        self.failures.push(failure);
        if self.failures.len() > FAILURES_MAX {
            let counted = |failure: &Failure| {
                matches!(failure.cause, FailureCause::Crashed | FailureCause::OutOfMemory)
            };
            let oldest = self.failures.iter().position(|failure| !counted(failure)).unwrap_or(0);
            self.failures.remove(oldest);
        }
    }
}
