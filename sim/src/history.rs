//! What happened: the trace, and what the checks go by. All times are true ones.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hatchery_common::id::{AttemptId, JobId, RequestId};
use hatchery_scheduler::{Cluster, Event, violations};

use crate::clock;

/// Most problems that are kept; the first say the most.
const PROBLEMS_MAX: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LifeId(usize);

#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) attempt: AttemptId,
    pub(crate) machine: usize,
    pub(crate) ended: Option<(Duration, &'static str)>,
    pub(crate) steps: u64,
}

#[derive(Debug, Default)]
pub(crate) struct History {
    /// The durable state, as all commits together have made it.
    pub(crate) cluster: Cluster,
    pub(crate) commits: Vec<(Duration, Event)>,
    pub(crate) lives: Vec<Life>,
    /// Which jobs were acknowledged to whom, by request.
    pub(crate) acknowledged: BTreeMap<RequestId, Vec<JobId>>,
    pub(crate) duplicates: usize,
    pub(crate) conflicts_refused: usize,
    pub(crate) problems: Vec<String>,
    pub(crate) lines: Vec<String>,
    hasher: blake3::Hasher,
}

impl History {
    /// A line of the trace.
    pub(crate) fn note(&mut self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {what}", clock::now().as_secs_f64());
        self.hasher.update(line.as_bytes());
        self.hasher.update(b"\n");
        self.lines.push(line);
    }

    /// The digest of the trace so far.
    pub(crate) fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }

    /// Something that must never be.
    pub(crate) fn problem(&mut self, what: String) {
        self.note(format_args!("PROBLEM {what}"));
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(what);
        }
    }

    /// Changes became durable together.
    pub(crate) fn committed(&mut self, events: &[Event]) {
        for event in events {
            let text = serde_json::to_string(event).unwrap_or_default();
            self.note(format_args!("commit {text}"));
            self.cluster.evolve(event);
            self.commits.push((clock::now(), event.clone()));
        }
        for violation in violations(&self.cluster) {
            self.problem(format!("I4: {violation}"));
        }
    }

    /// A trainer began.
    pub(crate) fn began(&mut self, attempt: AttemptId, machine: usize) -> LifeId {
        let AttemptId { job, epoch } = attempt;
        self.note(format_args!("machine {machine}: trainer of {} {epoch} begins", job.short()));
        let other = self.lives.iter().find(|life| life.attempt.job == job && life.ended.is_none());
        if let Some(Life { attempt: AttemptId { epoch: older, .. }, machine: there, .. }) = other.cloned() {
            self.problem(format!(
                "I6: a trainer of job {} begins on machine {machine} under epoch {epoch}, while one of epoch {older} \
                 runs on machine {there}",
                job.short(),
            ));
        }
        self.lives.push(Life { attempt, machine, ended: None, steps: 0 });
        LifeId(self.lives.len() - 1)
    }

    /// It made a step.
    pub(crate) fn stepped(&mut self, life: LifeId, step: u64) {
        self.lives[life.0].steps += 1;
        let Life { attempt: AttemptId { job, epoch }, machine, .. } = self.lives[life.0];
        self.note(format_args!("machine {machine}: {} {epoch} step {step}", job.short()));
    }

    pub(crate) fn ended(&mut self, life: LifeId, how: &'static str, now: Duration) {
        self.lives[life.0].ended = Some((now, how));
        let Life { attempt: AttemptId { job, epoch }, machine, .. } = self.lives[life.0];
        self.note(format_args!("machine {machine}: trainer of {} {epoch} {how}", job.short()));
    }

    /// A submission was answered with OK.
    pub(crate) fn acknowledged(&mut self, request: RequestId, job: JobId, duplicate: bool) {
        self.note(format_args!("submission {request} is job {} (duplicate: {duplicate})", job.short()));
        self.duplicates += usize::from(duplicate);
        let jobs = self.acknowledged.entry(request).or_default();
        jobs.push(job);
        if jobs.iter().any(|other| *other != job) {
            self.problem(format!("I2: the request {request} made two jobs"));
        }
        if !self.cluster.jobs.contains_key(&job) {
            self.problem(format!("I1: job {} was acknowledged before it was durable", job.short()));
        }
    }
}

/// What a mutex holds; one that a panic has poisoned is as good: the panic itself is what is told.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
