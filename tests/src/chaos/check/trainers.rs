//! What trainers did, by their own words and by what stands in their checkpoints.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Evidence, Finding};
use crate::chaos::evidence::Step;

/// Nobody begins a step after the job was given to the next attempt, nor while another process makes steps of that job.
pub(super) fn nobody_trains_after_the_lease(evidence: &Evidence) -> Vec<Finding> {
    let mut granted: BTreeMap<(&str, u64), u64> = BTreeMap::new();
    for event in evidence.events.iter().filter(|event| event.kind == "lease_granted") {
        granted.insert((event.text("job"), event.number_of("epoch")), event.at_ms);
    }
    let mut findings = Vec::new();
    let mut first_late: BTreeMap<(&str, u64), (&Step, u64)> = BTreeMap::new();
    for step in &evidence.steps {
        if let Some(next_ms) =
            granted.get(&(step.job.as_str(), step.epoch + 1)).filter(|next| step.wall_ms >= **next)
        {
            first_late.entry((&step.job, step.epoch)).or_insert((step, *next_ms));
        }
    }
    for ((job, epoch), (step, next_ms)) in first_late {
        let late_ms = step.wall_ms - next_ms;
        let text = format!(
            "job {job}: epoch {epoch} began step {} {late_ms} ms after the next was granted",
            step.step
        );
        findings.push(Finding::new("I6", text));
    }
    findings.extend(two_at_once(evidence));
    findings
}

/// Steps of one job by two processes in turn.
fn two_at_once(evidence: &Evidence) -> Vec<Finding> {
    let mut spans: BTreeMap<(&str, u64), (u64, u64)> = BTreeMap::new();
    for step in &evidence.steps {
        let span = spans.entry((&step.job, step.process)).or_insert((step.wall_ms, step.wall_ms));
        *span = (span.0.min(step.wall_ms), span.1.max(step.wall_ms));
    }
    let spans: Vec<_> = spans.into_iter().collect();
    let mut findings = Vec::new();
    for pair in spans
        .iter()
        .enumerate()
        .flat_map(|(index, one)| spans[index + 1..].iter().map(move |other| (one, other)))
    {
        let (((job, one), (from, to)), ((other_job, other), (other_from, other_to))) = pair;
        if job == other_job && from < other_to && other_from < to {
            findings.push(Finding::new(
                "I6",
                format!("job {job}: the processes {one} and {other} trained at once"),
            ));
        }
    }
    findings
}

/// A checkpoint that was committed under an epoch was made under it.
pub(super) fn checkpoints_are_their_epochs_own(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (id, manifest, moments) in moments(evidence) {
        for key in ["job", "epoch", "step"] {
            if manifest[key] != moments[key] {
                let text = format!(
                    "checkpoint {id} was committed for {key} {} and made for {}",
                    manifest[key], moments[key]
                );
                findings.push(Finding::new("I3", text));
            }
        }
    }
    findings
}

/// What a job has learnt by a step is what an uninterrupted run would have learnt.
pub(super) fn no_step_is_lost_or_doubled(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (id, _, moments) in moments(evidence) {
        let (job, step) =
            (moments["job"].as_str().unwrap_or_default(), moments["step"].as_u64().unwrap_or(0));
        if moments["chain"] != chain(job, step).as_str() {
            findings.push(Finding::new(
                "I9",
                format!("checkpoint {id} of job {job} is not what {step} steps give: {moments}"),
            ));
        }
    }
    findings
}

fn moments(evidence: &Evidence) -> impl Iterator<Item = (&str, &Value, &Value)> {
    evidence
        .checkpoints
        .iter()
        .filter_map(|one| Some((one.id.as_str(), &one.manifest, one.moments.as_ref()?)))
}

/// What the fake trainer has learnt after `steps` steps.
fn chain(job: &str, steps: u64) -> String {
    let mut chain = blake3::hash(job.as_bytes());
    for step in 1..=steps {
        chain = blake3::hash(&[chain.as_bytes(), &step.to_le_bytes()[..]].concat());
    }
    chain.to_string()
}
