//! What those who typed were told, held against what came of it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Evidence, Finding};
use crate::chaos::{
    clients::{is_terminal, tells_of_a_full_disk},
    history::Submission,
};

/// Most memory of the coordinator, in bytes: a bound on what a few agents and jobs may cost it.
const MEMORY_BYTES_MAX: u64 = 512 << 20;
/// How `hatchery` may end when it could not do what it was asked: failed, no coordinator, refused.
const EXIT_CODES: [i32; 3] = [1, 3, 5];

/// Every job that a submission was told is there in the end, and so is every cancellation.
pub(super) fn acknowledged_submissions_are_there(evidence: &Evidence) -> Vec<Finding> {
    let acknowledged = evidence.records.submissions.iter().filter(|one| one.is_acknowledged());
    let lost =
        acknowledged.filter(|one| !one.job.as_ref().is_some_and(|job| evidence.jobs.contains_key(job)));
    let lost = lost.map(|one| {
        Finding::new(
            "I1",
            format!("request {} was told job {:?}, and there is no such job", one.request, one.job),
        )
    });
    let cancelled = evidence.records.cancelled.iter().filter_map(|job| {
        let phase = evidence.jobs.get(job).map_or("gone", |view| view["phase"].as_str().unwrap_or_default());
        let text = || format!("the cancellation of job {job} was answered OK, and it is {phase}");
        (phase != "cancelled").then(|| Finding::new("I1", text()))
    });
    lost.chain(cancelled).collect()
}

/// What one answer shows of a job, later ones do not take back, nor does the end.
pub(super) fn what_was_seen_stays_true(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    let committed: BTreeSet<&str> = evidence.checkpoints.iter().map(|one| one.id.as_str()).collect();
    for (index, earlier) in evidence.records.sightings.iter().enumerate() {
        let later =
            evidence.records.sightings[index + 1..].iter().find(|later| later.time_ms.0 >= earlier.time_ms.1);
        for (job, seen) in &earlier.jobs {
            if let Some(checkpoint) = seen.checkpoint.as_deref().filter(|id| !committed.contains(id)) {
                findings.push(Finding::new(
                    "I1",
                    format!("job {job} was seen with checkpoint {checkpoint}, which is gone"),
                ));
            }
            let Some(later) = later else { continue };
            let Some(now) = later.jobs.get(job) else {
                findings.push(Finding::new("I1", format!("job {job} was seen, and later it was gone")));
                continue;
            };
            let went_back = now.epoch < seen.epoch || now.checkpoint_step < seen.checkpoint_step;
            if went_back || is_terminal(&seen.phase) && now.phase != seen.phase {
                findings.push(Finding::new("I1", format!("job {job} went back from {seen:?} to {now:?}")));
            }
        }
    }
    findings
}

/// One request id and body give one job, however often they are sent; another body is refused.
pub(super) fn one_request_makes_one_job(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut by_request: BTreeMap<&str, Vec<&Submission>> = BTreeMap::new();
    for one in &evidence.records.submissions {
        by_request.entry(&one.request).or_default().push(one);
    }
    for (request, submissions) in by_request {
        let acknowledged = || submissions.iter().filter(|one| one.is_acknowledged());
        let jobs: BTreeSet<_> = acknowledged().filter_map(|one| one.job.as_deref()).collect();
        if jobs.len() > 1 {
            findings.push(Finding::new("I2", format!("request {request} was told several jobs: {jobs:?}")));
        }
        let bodies: BTreeSet<_> = acknowledged().map(|one| &one.body).collect();
        if bodies.len() > 1 {
            findings.push(Finding::new(
                "I2",
                format!("request {request} was taken with several bodies: {bodies:?}"),
            ));
        }
    }
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    for job in evidence.jobs.values() {
        *by_name.entry(job["spec"]["name"].as_str().unwrap_or_default()).or_default() += 1;
    }
    let doubled = by_name.iter().filter(|(_, count)| **count > 1);
    findings.extend(
        doubled.map(|(name, count)| {
            Finding::new("I2", format!("{name} was submitted once and is {count} jobs"))
        }),
    );
    findings
}

/// While no file can be synced, no new text is taken.
pub(super) fn nothing_is_acknowledged_unsynced(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (from_ms, to_ms) in &evidence.records.unsynced_ms {
        let during = |one: &&Submission| one.time_ms.0 >= *from_ms && one.time_ms.1 <= *to_ms;
        let taken = evidence.records.submissions.iter().filter(during);
        let taken = taken.filter(|one| one.is_acknowledged() && one.brings_text);
        findings.extend(taken.map(|one| {
            Finding::new("I7", format!("the text of {} was taken, and could not be synced", one.body))
        }));
    }
    findings
}

/// Who is not served is told so in words and by an exit code; while the disk is full, somebody was refused for it.
pub(super) fn refusals_are_typed(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    for one in &evidence.records.submissions {
        if let Some(code) = one.code.filter(|code| *code != 0)
            && (!EXIT_CODES.contains(&code) || one.said.trim().is_empty())
        {
            findings
                .push(Finding::new("I12", format!("a submission ended with {code} and said {:?}", one.said)));
        }
    }
    for (from_ms, to_ms) in &evidence.records.disk_full_ms {
        let during = |one: &&Submission| one.time_ms.0 >= *from_ms && one.time_ms.1 <= *to_ms;
        let mut answered = evidence.records.submissions.iter().filter(during);
        if !answered.any(|one| !one.is_acknowledged() && tells_of_a_full_disk(&one.said)) {
            findings.push(Finding::new("I12", "the disk was full, and nobody who submitted was told so"));
        }
    }
    findings
}

/// The coordinator's memory stays small, and no process of Hatchery panics.
pub(super) fn memory_is_bounded_and_nobody_panics(evidence: &Evidence) -> Vec<Finding> {
    let most = evidence.records.memory_bytes_max;
    let large = (most > MEMORY_BYTES_MAX)
        .then(|| Finding::new("I12", format!("the coordinator took {} MiB of memory", most >> 20)));
    let ends = evidence.records.unexpected_ends.iter().chain(&evidence.panics);
    large.into_iter().chain(ends.map(|line| Finding::new("I12", line.clone()))).collect()
}
