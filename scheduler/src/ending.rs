//! What becomes of a job when its attempt is over.

use std::{collections::BTreeSet, time::Duration};

use hatchery_common::{
    device::DeviceKind,
    digest::Digest,
    id::NodeId,
    time::Timestamp,
    trainer::{Ending, FailureCause},
};

use crate::{
    cluster::{Cluster, Failure, Job, JobPhase, Lease},
    event::{Event, LeaseEnd, What},
    limits::{
        BACKOFF_MAX, BACKOFF_MIN, CRASH_NODES_MIN, CRASHES_MAX, CRASHES_ON_ONE_NODE_MAX, OUT_OF_MEMORY_MAX,
        OUTPUT_BYTES_MAX,
    },
};

impl Job {
    /// Whether the checkpoint that ends the run is committed, so that nothing is left to do: that of the last step, or one
    /// that says that the run ended early there.
    pub fn end_is_committed(&self) -> bool {
        self.checkpoint_step == self.spec.train.raw().steps || self.metrics.early_stop.is_some()
    }

    /// In how many parts, one after the other, the sequences of a step go through a device of this kind: after each
    /// attempt that ran out of memory there, in twice as many. The step stays what it is but for rounding.
    pub fn parts_on(&self, kind: DeviceKind) -> u32 {
        let train = self.spec.train.raw();
        let too_large =
            |failure: &&Failure| failure.cause == FailureCause::OutOfMemory && failure.device.kind == kind;
        let times = self.failures.iter().filter(too_large).count();
        let twice = |parts: u32| {
            let mut enough = (2 * parts).min(train.batch)..=train.batch;
            enough.find(|parts| train.batch.is_multiple_of(*parts)).unwrap_or(train.batch)
        };
        (0..times).fold(train.accumulate, |parts, _| twice(parts))
    }
}

/// The one event that ends the attempt which has `job`'s lease, for a reason that is not the job's fault. A job that
/// goes back to the queue gets no new lease before `not_before`.
pub(crate) fn interrupted(job: &Job, why: LeaseEnd, not_before: Option<Timestamp>, at: Timestamp) -> Event {
    settled(job, at).unwrap_or(What::LeaseEnded { job: job.id, epoch: job.epoch, why, not_before }.at(at))
}

/// The one event that ends the attempt which has `lease`, as its trainer ended.
pub(crate) fn ended(
    cluster: &Cluster,
    job: &Job,
    lease: &Lease,
    ending: &Ending,
    last_output: &str,
    at: Timestamp,
) -> Event {
    let (cause, message) = match ending {
        Ending::Failed { cause, message } => (*cause, message.clone()),
        // It may have ended early, behind a checkpoint that came late from another attempt: the next one goes on from that.
        Ending::Completed if is_overtaken(cluster, job) => {
            return interrupted(job, LeaseEnd::HandedOver, None, at);
        }
        // An end is reported only once its delivery is over: what is not here by now never comes.
        Ending::Completed => (FailureCause::Storage, never_came(job)),
        Ending::Stopped if job.hand_over.is_some() => {
            return interrupted(job, LeaseEnd::HandedOver, None, at);
        }
        // The agent does not wait to be asked.
        Ending::NodeAway => return interrupted(job, LeaseEnd::HandedOver, None, at),
        Ending::Stopped | Ending::LeaseExpired => return interrupted(job, LeaseEnd::Stopped, None, at),
    };
    let told = told(&message, last_output);
    settled(job, at).unwrap_or_else(|| match verdict(cluster, job, lease, cause, &told) {
        Some(phase) => What::JobEnded { job: job.id, phase }.at(at),
        None => What::LeaseEnded {
            job: job.id,
            epoch: job.epoch,
            why: LeaseEnd::Failed { cause, message: told },
            not_before: Some(at + backoff(cluster, job)),
        }
        .at(at),
    })
}

/// The end of a job that ends in any case once its attempt is over.
fn settled(job: &Job, at: Timestamp) -> Option<Event> {
    let phase = match job.phase {
        JobPhase::Cancelling => JobPhase::Cancelled,
        _ if job.end_is_committed() => JobPhase::Completed,
        _ => return None,
    };
    Some(What::JobEnded { job: job.id, phase }.at(at))
}

/// Whether a failure is the job's last.
fn verdict(cluster: &Cluster, job: &Job, lease: &Lease, cause: FailureCause, told: &str) -> Option<JobPhase> {
    let failed = |why: &str| Some(JobPhase::Failed { why: format!("{why}: {told}") });
    let before = |cause| job.failures.iter().filter(move |failure| failure.cause == cause);
    match cause {
        FailureCause::BadInput => failed("the input cannot be used"),
        // Once more from the last checkpoint, which was good: a device may have miscounted.
        FailureCause::NotANumber if before(cause).count() == 0 => None,
        FailureCause::NotANumber => failed("the loss was not a number, twice"),
        FailureCause::OutOfMemory => {
            let kind = lease.device.kind;
            let times = 1 + before(cause).filter(|failure| failure.device.kind == kind).count();
            let may_shrink = kind != DeviceKind::Cpu && job.parts_on(kind) < job.spec.train.raw().batch;
            if may_shrink || times < OUT_OF_MEMORY_MAX {
                return None;
            }
            failed(&format!("{times} attempts ran out of memory on {kind}; use a smaller batch or model"))
        }
        FailureCause::Crashed => {
            let crashes = 1 + before(cause).count();
            let nodes: BTreeSet<_> = before(cause).map(|failure| failure.node).chain([lease.node]).collect();
            let poisoned = crashes >= CRASHES_MAX && nodes.len() >= CRASH_NODES_MIN
                || crashes >= CRASHES_ON_ONE_NODE_MAX;
            let name =
                |node: &NodeId| cluster.nodes.get(node).map_or(node.short(), |node| node.name.to_string());
            let names: BTreeSet<String> = nodes.iter().map(name).collect();
            poisoned.then(|| JobPhase::Poisoned {
                why: format!(
                    "its trainer crashed {crashes} times, on {}: {told}",
                    Vec::from_iter(names).join(", ")
                ),
            })
        }
        FailureCause::Unavailable | FailureCause::Storage | FailureCause::Outdated => None,
    }
}

/// The pause before the next attempt: it doubles with every failure since the last checkpoint, and up to a quarter
/// is added that depends on job and epoch, so that jobs which failed together do not come back together.
fn backoff(cluster: &Cluster, job: &Job) -> Duration {
    let reached = job.checkpoint.and_then(|id| cluster.checkpoints.get(&id)).map(|c| c.manifest.epoch);
    let fruitless = job.failures.iter().filter(|failure| Some(failure.epoch) > reached).count();
    let base = BACKOFF_MIN.saturating_mul(1 << fruitless.min(16)).min(BACKOFF_MAX);
    let dice = Digest::of(format!("{} {}", job.id, job.epoch).as_bytes()).as_bytes()[0];
    base + base / 4 * u32::from(dice) / 255
}

/// Whether the newest checkpoint came late, from another attempt than the present one.
fn is_overtaken(cluster: &Cluster, job: &Job) -> bool {
    let newest = job.checkpoint.and_then(|id| cluster.checkpoints.get(&id));
    newest.is_some_and(|newest| newest.late && newest.manifest.epoch != job.epoch)
}

fn never_came(job: &Job) -> String {
    format!(
        "the attempt finished all its steps, but its last checkpoint never arrived: the newest checkpoint \
         is of step {} of {}; check the disk and the connection of its node",
        job.checkpoint_step,
        job.spec.train.raw().steps
    )
}

/// Message and last output as one text; of a long one the end is kept.
fn told(message: &str, last_output: &str) -> String {
    let last_output = last_output.trim_end();
    let text = if last_output.is_empty() { message.to_owned() } else { format!("{message}\n{last_output}") };
    if text.len() <= OUTPUT_BYTES_MAX {
        return text;
    }
    let mark = "... ";
    let start = text.ceil_char_boundary(text.len() - OUTPUT_BYTES_MAX + mark.len());
    format!("{mark}{}", &text[start..])
}
