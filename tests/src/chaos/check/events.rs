//! The fleet's own history, replayed by other rules than those that made it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Evidence, Finding};
use crate::chaos::{
    clients::{CRASH_WORDS, is_terminal},
    evidence::Event,
};

/// Crashes that make poison: so many on two nodes, or so many anywhere.
const CRASHES: (usize, usize) = (3, 6);
/// Two clocks that are read one after the other.
const CLOCK_MS: u64 = 20;

/// A job as the events so far have made it.
#[derive(Clone, Debug, Default)]
struct Job {
    phase: String,
    epoch: u64,
    lease: Option<(String, String)>,
    step: u64,
    steps: u64,
    /// Nodes on which its trainer crashed.
    crashes: Vec<String>,
    /// Epochs that were granted, and are over.
    over: BTreeSet<u64>,
    /// Whether its attempt stops because it is to be paused.
    pausing: bool,
}

/// Calls `look` with each event and the jobs as they were before it.
fn replay(evidence: &Evidence, mut look: impl FnMut(&Event, &BTreeMap<String, Job>)) {
    let mut jobs: BTreeMap<String, Job> = BTreeMap::new();
    for event in &evidence.events {
        look(event, &jobs);
        apply(event, &mut jobs);
    }
}

fn apply(event: &Event, jobs: &mut BTreeMap<String, Job>) {
    let change = &event.change;
    let id = if event.kind == "checkpoint_committed" { &change["manifest"]["job"] } else { &change["job"] };
    let Some(id) = id.as_str() else { return };
    let job = jobs.entry(id.to_owned()).or_default();
    match event.kind.as_str() {
        "job_submitted" => {
            "queued".clone_into(&mut job.phase);
            job.steps = change["spec"]["train"]["steps"].as_u64().unwrap_or(0);
        }
        "lease_granted" => {
            "running".clone_into(&mut job.phase);
            job.epoch = event.number_of("epoch");
            job.lease = Some(device_of(change));
        }
        "lease_ended" => {
            let phase = if std::mem::take(&mut job.pausing) { "paused" } else { "queued" };
            phase.clone_into(&mut job.phase);
            job.over.insert(job.epoch);
            let lease = job.lease.take();
            if change["why"]["cause"] == "crashed" {
                job.crashes.extend(lease.map(|(node, _)| node));
            }
        }
        "hand_over_requested" => job.pausing = change["why"]["why"] == "pause",
        "job_paused" => "paused".clone_into(&mut job.phase),
        "job_resumed" => "queued".clone_into(&mut job.phase),
        "cancel_requested" => {
            "cancelling".clone_into(&mut job.phase);
            job.pausing = false;
        }
        "job_ended" => {
            change["phase"]["phase"].as_str().unwrap_or_default().clone_into(&mut job.phase);
            if job.phase == "poisoned" {
                job.crashes.extend(job.lease.take().map(|(node, _)| node));
            }
            job.lease = None;
        }
        "checkpoint_committed" => job.step = change["manifest"]["step"].as_u64().unwrap_or(0),
        _ => {}
    }
}

fn device_of(granted: &Value) -> (String, String) {
    let text = |key: &str| granted["lease"][key].as_str().unwrap_or_default().to_owned();
    (text("node"), text("device"))
}

/// Epochs grow by one; what an attempt brings counts only while its epoch is the job's, and takes the job further.
pub(super) fn only_the_current_epoch_counts(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    let none = Job::default();
    replay(evidence, |event, jobs| {
        let mut found =
            |text: String| findings.push(Finding::new("I3", format!("event {}: {text}", event.number)));
        let before = jobs.get(event.text("job")).unwrap_or(&none);
        let epoch = event.number_of("epoch");
        match event.kind.as_str() {
            "lease_granted" if epoch != before.epoch + 1 => {
                found(format!("epoch {epoch} was granted after {}", before.epoch));
            }
            "lease_ended" if epoch != before.epoch => {
                found(format!("epoch {epoch} ended in epoch {}", before.epoch));
            }
            "checkpoint_committed" => {
                let manifest = &event.change["manifest"];
                let before = manifest["job"].as_str().and_then(|job| jobs.get(job)).unwrap_or(&none);
                let (epoch, step) =
                    (manifest["epoch"].as_u64().unwrap_or(0), manifest["step"].as_u64().unwrap_or(0));
                let is_late = event.change["late"] == true;
                let in_time = epoch == before.epoch && before.lease.is_some();
                // One that comes late counts if it is further than all that came since.
                if is_late != before.over.contains(&epoch) || !is_late && !in_time {
                    found(format!(
                        "a checkpoint of epoch {epoch} was committed in epoch {}, late: {is_late}",
                        before.epoch
                    ));
                }
                if is_terminal(&before.phase) {
                    found(format!("a checkpoint was committed for a job that is {}", before.phase));
                }
                if step <= before.step || step > before.steps {
                    found(format!(
                        "a checkpoint of step {step} of {} was committed after step {}",
                        before.steps, before.step
                    ));
                }
            }
            _ => {}
        }
    });
    findings
}

/// A job goes only where its phase leads, and a terminal phase leads nowhere.
pub(super) fn only_legal_transitions(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut last = 0;
    replay(evidence, |event, jobs| {
        if event.number != last + 1 {
            findings.push(Finding::new("I4", format!("event {} comes after event {last}", event.number)));
        }
        last = event.number;
        let phase = jobs.get(event.text("job")).map_or("", |job| job.phase.as_str());
        let legal = match event.kind.as_str() {
            "job_submitted" => phase.is_empty(),
            "lease_granted" | "job_paused" => phase == "queued",
            "job_resumed" => phase == "paused",
            "lease_ended" | "cancel_requested" | "hand_over_requested" => phase == "running",
            "job_ended" => {
                !phase.is_empty()
                    && !is_terminal(phase)
                    && is_terminal(event.change["phase"]["phase"].as_str().unwrap_or_default())
            }
            _ => true,
        };
        if !legal {
            findings.push(Finding::new(
                "I4",
                format!("event {}: {} of a job that is {phase:?}", event.number, event.kind),
            ));
        }
    });
    findings
}

/// Once everything is well again, every job comes to its end.
pub(super) fn every_job_ends(evidence: &Evidence) -> Vec<Finding> {
    let phase = |job: &Value| job["phase"].as_str().unwrap_or_default().to_owned();
    let open = evidence.jobs.iter().filter(|(_, job)| !is_terminal(&phase(job)));
    open.map(|(id, job)| Finding::new("liveness", format!("job {id} is {}: {}", phase(job), job["why"])))
        .collect()
}

/// A node that was closed to new work gets none.
pub(super) fn closed_nodes_get_nothing(evidence: &Evidence) -> Vec<Finding> {
    let (mut closed, mut findings) = (BTreeSet::new(), Vec::new());
    for event in &evidence.events {
        let node = event.text("node").to_owned();
        match event.kind.as_str() {
            "node_mode_changed" if event.change["mode"] == "open" => drop(closed.remove(&node)),
            "node_mode_changed" => drop(closed.insert(node)),
            "lease_granted" if closed.contains(&device_of(&event.change).0) => {
                let text = format!("event {}: {} was given a closed node", event.number, event.text("job"));
                findings.push(Finding::new("I4", text));
            }
            _ => {}
        }
    }
    findings
}

/// A device has one lease at a time.
pub(super) fn no_device_is_given_twice(evidence: &Evidence) -> Vec<Finding> {
    let mut findings = Vec::new();
    replay(evidence, |event, jobs| {
        if event.kind != "lease_granted" {
            return;
        }
        let wanted = device_of(&event.change);
        for (other, job) in jobs {
            if job.lease.as_ref() == Some(&wanted) {
                let text = format!(
                    "event {}: {wanted:?} was given to {}, and {other} has it",
                    event.number,
                    event.text("job")
                );
                findings.push(Finding::new("I4", text));
            }
        }
    });
    findings
}

/// No node is lost sooner than a lease after the coordinator's last start.
pub(super) fn restarts_give_every_lease_its_term(evidence: &Evidence) -> Vec<Finding> {
    let lost = evidence.events.iter().filter(|event| is_loss(event));
    let too_soon = lost.filter_map(|event| {
        let start =
            evidence.records.coordinator_starts_ms.iter().filter(|start| **start <= event.at_ms).max()?;
        let after_ms = event.at_ms - start;
        let text = || {
            format!(
                "event {}: a node was lost {after_ms} ms after a start, in leases of {} ms",
                event.number, evidence.lease_ms
            )
        };
        (after_ms + CLOCK_MS < evidence.lease_ms).then(|| Finding::new("I5", text()))
    });
    too_soon.collect()
}

/// Whether the event is a lease that ran out.
pub(crate) fn is_loss(event: &Event) -> bool {
    event.kind == "lease_ended" && event.change["why"]["why"] == "node_lost"
}

/// Who is held as poisoned has crashed often enough, on nodes enough, and it is told with its last words; who crashes
/// wherever it runs is held.
pub(super) fn poison_is_the_jobs_own(evidence: &Evidence) -> Vec<Finding> {
    let mut last = BTreeMap::new();
    replay(evidence, |event, jobs| {
        last.clone_from(jobs);
        apply(event, &mut last);
    });
    let mut findings = Vec::new();
    let mut unlooked = 0;
    for (id, job) in &last {
        let view = evidence.jobs.get(id).unwrap_or(&Value::Null);
        let crashes_always = view["spec"]["name"].as_str().unwrap_or_default().starts_with("crashing");
        let nodes: BTreeSet<&String> = job.crashes.iter().collect();
        let enough = job.crashes.len() >= CRASHES.0 && nodes.len() > 1 || job.crashes.len() >= CRASHES.1;
        let mut found = |text: &str| findings.push(Finding::new("I10", format!("job {id} {text}: {job:?}")));
        if job.phase == "poisoned" && !enough {
            found("is held as poisoned too soon");
        }
        if crashes_always && !["poisoned", "cancelled"].contains(&job.phase.as_str()) {
            found("crashes wherever it runs and is not held");
        }
        if crashes_always
            && job.phase == "poisoned"
            && !view["why"].as_str().unwrap_or_default().contains(CRASH_WORDS)
        {
            found("is held without its last words");
        }
        unlooked += if crashes_always { 0 } else { job.crashes.len() as u64 };
    }
    let killed = evidence.records.trainers_killed;
    if unlooked > killed {
        findings.push(Finding::new(
            "I10",
            format!("{unlooked} crashes are told of jobs that do not crash; {killed} trainers were killed"),
        ));
    }
    findings
}
