//! What should never be. Tests, `fsck` and the simulator look at all of it after every event; a coordinator looks at what
//! is cheap of it before each commit, and commits nothing that breaks it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use hatchery_common::{
    access::Scope,
    device::Device,
    id::{CheckpointId, Epoch, JobId, Name, NodeId},
};

use crate::{
    cluster::{Cluster, Holder, Job, JobPhase},
    event::{Event, What},
    limits::{FAILURES_MAX, HOLDERS_MAX},
    plan::Plan,
};

/// The invariant that a rule belongs to, by its number in ARCHITECTURE.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// One request makes one job.
    I2,
    /// Epochs only grow, and only the current one counts.
    I3,
    /// Only legal phases, and no device given twice.
    I4,
    /// What is needed is kept.
    I11,
    /// None of those: the records fit together.
    Records,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Records => f.write_str("records"),
            numbered => write!(f, "{numbered:?}"),
        }
    }
}

/// One thing that should never be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject} breaks an invariant ({invariant}): {rule}")]
pub struct Violation {
    pub invariant: Invariant,
    /// What it is about: `job 4f...`.
    pub subject: String,
    /// What should hold, and does not.
    pub rule: &'static str,
}

/// Everything that should not be; empty for a sound cluster.
pub fn violations(cluster: &Cluster) -> Vec<Violation> {
    let mut found = Found::default();
    for (id, job) in &cluster.jobs {
        let subject = || format!("job {id}");
        found.check(Invariant::Records, job.id == *id, subject, "it is stored under its own id");
        job_phase(job, &mut |holds, rule| found.check(Invariant::I4, holds, subject, rule));
        let check = &mut |invariant, holds, rule| found.check(invariant, holds, subject, rule);
        job_references(cluster, job, check);
    }
    devices(cluster, &mut found);
    requests(cluster, &mut found);
    checkpoints(cluster, &mut found);
    members(cluster, &mut found);
    found.0
}

/// Checks what `events` have made of `before`, as far as it is cheap: the jobs that they are about, and the devices if one
/// was given. What was broken before is not held against them.
pub fn check_batch(before: &Cluster, after: &Cluster, events: &[Event]) -> Result<(), Violation> {
    let touched: BTreeSet<JobId> = events.iter().filter_map(|event| event.what.job()).collect();
    let mut found = Found::default();
    for id in touched {
        let Some(job) = after.jobs.get(&id) else { continue };
        let subject = || format!("job {id}");
        let old = before.jobs.get(&id);
        let mut known = Vec::new();
        if let Some(old) = old {
            job_phase(old, &mut |holds, rule| known.extend((!holds).then_some(rule)));
        }
        job_phase(job, &mut |holds, rule| {
            found.check(Invariant::I4, holds || known.contains(&rule), subject, rule);
        });
        if let Some(old) = old {
            found.check(Invariant::I3, old.epoch <= job.epoch, subject, "epochs only grow");
            let is_final = !old.phase.is_terminal() || old.phase == job.phase;
            found.check(Invariant::I4, is_final, subject, "a terminal phase is final");
            let forward = old.checkpoint_step <= job.checkpoint_step;
            found.check(Invariant::I3, forward, subject, "a job's newest checkpoint only goes forward");
        }
    }
    if events.iter().any(|event| matches!(event.what, What::LeaseGranted { .. })) {
        devices(after, &mut found);
    }
    found.first()
}

/// Checks a plan that was made for `cluster`: only jobs that wait are granted, each under the next epoch, on devices that
/// nobody else has.
pub fn check_plan(cluster: &Cluster, plan: &Plan) -> Result<(), Violation> {
    let mut found = Found::default();
    let is_grant = |event: &Event| matches!(event.what, What::LeaseGranted { .. });
    if !plan.events.iter().any(is_grant) {
        return Ok(());
    }
    let mut leases: BTreeMap<JobId, (NodeId, Device)> = cluster
        .jobs
        .values()
        .filter_map(|job| job.lease.as_ref().map(|lease| (job.id, (lease.node, lease.device))))
        .collect();
    let mut granted = BTreeSet::new();
    for event in &plan.events {
        match &event.what {
            What::LeaseEnded { job, .. } | What::JobEnded { job, .. } => drop(leases.remove(job)),
            What::LeaseGranted { job: id, epoch, lease } => {
                let subject = || format!("job {id}");
                let job = cluster.jobs.get(id);
                let waits = job.is_some_and(|job| matches!(job.phase, JobPhase::Queued | JobPhase::Running))
                    && !leases.contains_key(id)
                    && granted.insert(*id);
                found.check(Invariant::I4, waits, subject, "only a job that waits is granted a device");
                let is_next = job.is_some_and(|job| job.epoch.next() == *epoch);
                found.check(Invariant::I3, is_next, subject, "a lease is granted under the next epoch");
                let place = (lease.node, lease.device);
                let is_free = leases.values().all(|taken| *taken != place);
                let subject = || format!("{} of node {}", lease.device, lease.node);
                found.check(Invariant::I4, is_free, subject, "a device has at most one attempt");
                leases.insert(*id, place);
            }
            _ => {}
        }
    }
    found.first()
}

#[derive(Default)]
struct Found(Vec<Violation>);

impl Found {
    fn check(&mut self, invariant: Invariant, holds: bool, subject: impl Fn() -> String, rule: &'static str) {
        if !holds {
            self.0.push(Violation { invariant, subject: subject(), rule });
        }
    }

    fn first(self) -> Result<(), Violation> {
        self.0.into_iter().next().map_or(Ok(()), Err)
    }
}

/// I4: a phase and what goes with it.
fn job_phase(job: &Job, check: &mut impl FnMut(bool, &'static str)) {
    let leased = matches!(job.phase, JobPhase::Running | JobPhase::Cancelling);
    check(job.lease.is_some() == leased, "a job has a lease exactly while it runs or is being cancelled");
    check(job.ended_at.is_some() == job.phase.is_terminal(), "a job has an end exactly in a terminal phase");
    // A job that never had a lease has an epoch all the same when the fleet was restored from a backup.
    check(job.started_at.is_none() || job.epoch > Epoch(0), "a started job has had a lease");
    check(job.started_at.is_some() || job.lease.is_none(), "a job with a lease has started");
    check(
        job.hand_over.is_none() || job.phase == JobPhase::Running,
        "only a running job hands its device over",
    );
    check(job.not_before.is_none() || job.phase == JobPhase::Queued, "only a queued job backs off");
    let complete = job.end_is_committed();
    let waits = matches!(job.phase, JobPhase::Queued | JobPhase::Paused);
    check(!complete || !waits, "a job whose end is committed does not wait");
    check(complete || job.phase != JobPhase::Completed, "a completed job has committed its end");
    check(job.failures.len() <= FAILURES_MAX, "a job remembers a bounded number of failures");
    check(job.holders.len() <= HOLDERS_MAX, "a job remembers a bounded number of nodes");
    let last = job.lease.as_ref().map(|lease| Holder { epoch: job.epoch, node: lease.node });
    check(
        last.is_none_or(|last| job.holders.last() == Some(&last)),
        "the lease's node is the newest epoch's",
    );
    let epochs = job.failures.iter().map(|failure| failure.epoch);
    check(epochs.is_sorted_by(|a, b| a < b), "each attempt fails once, in the order of epochs");
    check(job.failures.last().is_none_or(|last| last.epoch <= job.epoch), "no failure is ahead of the epoch");
}

fn job_references(cluster: &Cluster, job: &Job, check: &mut impl FnMut(Invariant, bool, &'static str)) {
    check(Invariant::I11, cluster.datasets.contains_key(&job.spec.dataset), "a job's dataset exists");
    let own = |id| cluster.checkpoints.get(&id).filter(|checkpoint| checkpoint.manifest.job == job.id);
    match job.checkpoint {
        None => check(
            Invariant::Records,
            job.checkpoint_step == 0,
            "a job without a checkpoint has no step committed",
        ),
        Some(id) => {
            let step = own(id).map(|checkpoint| checkpoint.manifest.step);
            check(
                Invariant::I3,
                step == Some(job.checkpoint_step),
                "a job's checkpoint is its own and of the recorded step",
            );
        }
    }
    check(
        Invariant::Records,
        job.checkpoint_step <= job.spec.train.raw().steps,
        "no checkpoint is beyond the last step",
    );
    let begins_with = job.spec.start_from.filter(|_| !job.phase.is_terminal());
    check(
        Invariant::I11,
        begins_with.is_none_or(|start| cluster.checkpoints.contains_key(&start.checkpoint)),
        "the checkpoint that an unfinished job starts from is kept",
    );
    check(
        Invariant::Records,
        job.best == cluster.best_checkpoint(job.id),
        "a job's best checkpoint has the lowest loss",
    );
    if let Some(lease) = &job.lease {
        check(Invariant::Records, cluster.nodes.contains_key(&lease.node), "a lease's node is in the fleet");
        check(
            Invariant::I3,
            lease.resume_from.is_none_or(|id| own(id).is_some() || is_start(job, id)),
            "an attempt resumes from a checkpoint of its job, or starts from the job's starting checkpoint",
        );
        check(
            Invariant::I11,
            lease.resume_from.is_none_or(|id| cluster.checkpoints.contains_key(&id)),
            "the checkpoint that an attempt resumes from is kept",
        );
    }
}

fn is_start(job: &Job, checkpoint: CheckpointId) -> bool {
    job.spec.start_from.is_some_and(|start| start.checkpoint == checkpoint)
}

/// I4: no device has two attempts.
fn devices(cluster: &Cluster, found: &mut Found) {
    let mut taken = BTreeSet::new();
    for lease in cluster.jobs.values().filter_map(|job| job.lease.as_ref()) {
        let free = taken.insert((lease.node, lease.device));
        found.check(
            Invariant::I4,
            free,
            || format!("{} of node {}", lease.device, lease.node),
            "a device has at most one attempt",
        );
    }
}

/// I2: every job was made by exactly one request.
fn requests(cluster: &Cluster, found: &mut Found) {
    let mut makers: BTreeMap<_, usize> = cluster.jobs.keys().map(|job| (*job, 0)).collect();
    for (request, (_, job)) in &cluster.requests {
        match makers.get_mut(job) {
            Some(count) => *count += 1,
            None => found.check(
                Invariant::I2,
                false,
                || format!("request {request}"),
                "the job that it created exists",
            ),
        }
    }
    for (job, count) in makers {
        found.check(Invariant::I2, count == 1, || format!("job {job}"), "exactly one request created it");
    }
}

/// I3: within a job, later checkpoints are further and come from no earlier epoch, unless they are known to be late.
fn checkpoints(cluster: &Cluster, found: &mut Found) {
    let mut by_job: BTreeMap<_, Vec<(u64, Epoch, bool)>> = BTreeMap::new();
    for (id, checkpoint) in &cluster.checkpoints {
        let manifest = &checkpoint.manifest;
        let subject = || format!("checkpoint {id}");
        found.check(
            Invariant::I3,
            manifest.id() == *id,
            subject,
            "it is stored under the digest of its manifest",
        );
        let job = cluster.jobs.get(&manifest.job);
        found.check(Invariant::I3, job.is_some(), subject, "its job exists");
        let known = |parent| {
            cluster.checkpoints.get(&parent).is_some_and(|p| p.manifest.job == manifest.job)
                || cluster.retired.get(&parent).is_some_and(|p| p.job == manifest.job)
                || job.is_some_and(|job| is_start(job, parent))
        };
        let rule = "its parent is a checkpoint of the same job, or the job's starting checkpoint";
        found.check(Invariant::I3, manifest.parent.is_none_or(known), subject, rule);
        let (newest, epoch) =
            job.map_or((manifest.step, manifest.epoch), |job| (job.checkpoint_step, job.epoch));
        found.check(
            Invariant::I3,
            manifest.step <= newest,
            subject,
            "no checkpoint is ahead of the job's newest",
        );
        found.check(Invariant::I3, manifest.epoch <= epoch, subject, "its epoch is not ahead of the job's");
        by_job.entry(manifest.job).or_default().push((manifest.step, manifest.epoch, checkpoint.late));
    }
    for id in cluster.retired.keys() {
        let is_kept = cluster.checkpoints.contains_key(id);
        found.check(
            Invariant::I3,
            !is_kept,
            || format!("checkpoint {id}"),
            "a retired checkpoint is not kept",
        );
    }
    for (job, mut line) in by_job {
        line.sort_unstable();
        found.check(
            Invariant::I3,
            line.is_sorted_by(|a, b| a.0 < b.0),
            || format!("job {job}"),
            "each of its checkpoints is ahead of the one before",
        );
        line.retain(|(_, _, late)| !late);
        let rule = "its checkpoints are ordered by step and by epoch alike, late ones excepted";
        found.check(Invariant::I3, line.is_sorted_by(|a, b| a.1 <= b.1), || format!("job {job}"), rule);
    }
    for (id, rollout) in &cluster.rollouts {
        let is_over = rollout.withdrawn_at.is_some() && cluster.retired.contains_key(&rollout.checkpoint);
        let there = cluster.checkpoints.contains_key(&rollout.checkpoint) || is_over;
        found.check(
            Invariant::I3,
            there && rollout.id == *id,
            || format!("rollout {id}"),
            "its checkpoint exists",
        );
    }
}

/// Nodes, their names and who may speak for them.
fn members(cluster: &Cluster, found: &mut Found) {
    let mut names: BTreeMap<&Name, NodeId> = BTreeMap::new();
    for (id, node) in &cluster.nodes {
        let unique = names.insert(&node.name, *id).is_none();
        found.check(
            Invariant::Records,
            unique && node.id == *id,
            || format!("node {id}"),
            "its name is unique",
        );
    }
    for (id, certificate) in &cluster.certificates {
        let subject = || format!("certificate {id}");
        let of_node = certificate.node.is_some() == (certificate.scope == Scope::Agent);
        found.check(
            Invariant::Records,
            of_node && certificate.id == *id,
            subject,
            "it names a node exactly for an agent",
        );
        let live = certificate.revoked_at.is_none();
        let there = certificate.node.is_none_or(|node| cluster.nodes.contains_key(&node));
        found.check(Invariant::Records, there || !live, subject, "it is revoked once its node is removed");
    }
    for (id, dataset) in &cluster.datasets {
        found.check(
            Invariant::Records,
            dataset.manifest.id() == *id,
            || format!("dataset {id}"),
            "it is stored under its own id",
        );
    }
}
