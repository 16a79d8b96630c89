//! Each check finds what it is for. `tests/tests/mutants.rs` shows the same of a Hatchery that is really broken.

use serde_json::{Value, json};

use super::{CHECKS, Evidence, all, disks};
use crate::chaos::{
    evidence::{Checkpoint, Event, Step},
    history::{SeenJob, Sighting, Submission},
};

const LEASE_MS: u64 = 3000;

fn event(number: u64, at_ms: u64, change: Value) -> Event {
    let kind = change["change"].as_str().unwrap_or_default().to_owned();
    Event { number, at_ms, kind, change }
}

fn submitted(job: &str) -> Value {
    json!({"change": "job_submitted", "job": job, "spec": {"train": {"steps": 20}}})
}

fn granted(job: &str, epoch: u64) -> Value {
    json!({"change": "lease_granted", "job": job, "epoch": epoch, "lease": {"node": "n", "device": "cpu"}})
}

fn ended(job: &str, epoch: u64, why: Value) -> Value {
    json!({"change": "lease_ended", "job": job, "epoch": epoch, "why": why})
}

fn committed(job: &str, epoch: u64, step: u64) -> Value {
    json!({"change": "checkpoint_committed", "manifest": {"job": job, "epoch": epoch, "step": step}})
}

fn brought_late(job: &str, epoch: u64, step: u64) -> Value {
    json!({"change": "checkpoint_committed", "late": true,
        "manifest": {"job": job, "epoch": epoch, "step": step}})
}

fn job_ended(job: &str, phase: &str) -> Value {
    json!({"change": "job_ended", "job": job, "phase": {"phase": phase}})
}

fn view(name: &str, phase: &str) -> Value {
    json!({"spec": {"name": name}, "phase": phase, "why": "because"})
}

/// A job that goes from its submission to its end, with a checkpoint on the way.
fn sound() -> Evidence {
    let changes = [submitted("a"), granted("a", 1), committed("a", 1, 20), job_ended("a", "completed")];
    let events = changes.into_iter().zip(1..).map(|(change, number)| event(number, 1000 * number, change));
    let mut evidence = Evidence { lease_ms: LEASE_MS, events: events.collect(), ..Evidence::default() };
    evidence.jobs.insert("a".to_owned(), view("one", "completed"));
    evidence
}

/// Appends what comes next.
fn with(mut evidence: Evidence, changes: impl IntoIterator<Item = Value>) -> Evidence {
    for change in changes {
        let number = evidence.events.len() as u64 + 1;
        evidence.events.push(event(number, 1000 * number, change));
    }
    evidence
}

fn invariants(evidence: &Evidence) -> Vec<&'static str> {
    let mut found: Vec<_> = all(evidence).into_iter().map(|finding| finding.invariant).collect();
    found.dedup();
    found
}

#[test]
fn a_sound_history_is_sound() {
    assert_eq!(all(&sound()), []);
    assert_eq!(all(&with(sound(), [submitted("b"), granted("b", 1), job_ended("b", "cancelled")])), []);
}

#[test]
fn what_was_acknowledged_or_seen_and_is_gone_is_found() {
    let mut evidence = sound();
    evidence.records.submissions.push(submission("r", "x", Some(0), Some("b")));
    assert_eq!(invariants(&evidence), ["I1"]);
    let mut evidence = sound();
    for (at, phase) in [(1, "completed"), (3, "running")] {
        let seen = SeenJob { phase: phase.to_owned(), epoch: 1, checkpoint_step: 0, checkpoint: None };
        let jobs = [("a".to_owned(), seen)].into();
        evidence.records.sightings.push(Sighting { time_ms: (at, at + 1), jobs });
    }
    assert_eq!(invariants(&evidence), ["I1"]);
}

#[test]
fn a_request_with_two_jobs_or_two_bodies_is_found() {
    for (body, job) in [("x", "b"), ("y", "a")] {
        let mut evidence = sound();
        evidence.jobs.insert("b".to_owned(), view("two", "cancelled"));
        evidence.records.submissions.push(submission("r", "x", Some(0), Some("a")));
        evidence.records.submissions.push(submission("r", body, Some(0), Some(job)));
        assert_eq!(invariants(&evidence), ["I2"], "{body} {job}");
    }
}

#[test]
fn epochs_that_do_not_count_and_phases_that_lead_nowhere_are_found() {
    let begun = || with(sound(), [submitted("b"), granted("b", 1)]);
    let lost = json!({"why": "stopped"});
    assert_eq!(invariants(&with(begun(), [committed("b", 2, 10)])), ["I3"]);
    assert_eq!(invariants(&with(begun(), [committed("b", 1, 10), committed("b", 1, 10)])), ["I3"]);
    let moved = || with(begun(), [ended("b", 1, lost.clone()), granted("b", 2)]);
    let over = job_ended("b", "cancelled");
    assert_eq!(all(&with(moved(), [brought_late("b", 1, 10), committed("b", 2, 20), over.clone()])), []);
    for wrong in [committed("b", 1, 10), brought_late("b", 2, 10), brought_late("b", 3, 10)] {
        assert_eq!(invariants(&with(moved(), [wrong, over.clone()])), ["I3"]);
    }
    assert_eq!(
        invariants(&with(moved(), [committed("b", 2, 10), brought_late("b", 1, 10), over.clone()])),
        ["I3"]
    );
    assert_eq!(invariants(&with(moved(), [over, brought_late("b", 1, 10)])), ["I3"]);
    assert_eq!(invariants(&with(begun(), [ended("b", 1, lost.clone()), granted("b", 1)])), ["I3"]);
    let pauses = json!({"change": "hand_over_requested", "job": "b", "why": {"why": "pause", "by": "ann"}});
    let handed_over = json!({"why": "handed_over"});
    let paused = [submitted("b"), granted("b", 1), pauses, ended("b", 1, handed_over)];
    let resumed = json!({"change": "job_resumed", "job": "b"});
    let last = job_ended("b", "cancelled");
    assert_eq!(all(&with(with(sound(), paused.clone()), [resumed, granted("b", 2), last.clone()])), []);
    assert_eq!(invariants(&with(with(sound(), paused), [granted("b", 2), last.clone()])), ["I4"]);
    let mode = |mode: &str| json!({"change": "node_mode_changed", "node": "n", "mode": mode});
    let closed = [mode("draining"), submitted("b"), granted("b", 1), last.clone()];
    assert_eq!(invariants(&with(sound(), closed)), ["I4"]);
    let open = [mode("cordoned"), mode("open"), submitted("b"), granted("b", 1), last];
    assert_eq!(all(&with(sound(), open)), []);
    assert_eq!(invariants(&with(sound(), [job_ended("a", "cancelled")])), ["I4"]);
    assert_eq!(
        invariants(&with(begun(), [ended("b", 1, lost), submitted("c"), granted("c", 1), granted("b", 2)])),
        ["I4"]
    );
}

#[test]
fn a_lease_that_ends_soon_after_a_start_is_found() {
    let lost =
        || with(sound(), [submitted("b"), granted("b", 1), ended("b", 1, json!({"why": "node_lost"}))]);
    let mut evidence = lost();
    evidence.records.coordinator_starts_ms.push(7000 - LEASE_MS);
    assert_eq!(all(&evidence), []);
    evidence.records.coordinator_starts_ms.push(7000 - LEASE_MS / 2);
    assert_eq!(invariants(&evidence), ["I5"]);
}

#[test]
fn whoever_trains_too_long_or_beside_another_is_found() {
    let step = |process, epoch, wall_ms| Step { job: "b".to_owned(), epoch, process, step: 1, wall_ms };
    let moved = || {
        let stopped = ended("b", 1, json!({"why": "stopped"}));
        with(sound(), [submitted("b"), granted("b", 1), stopped, granted("b", 2)])
    };
    let evidence = Evidence { steps: vec![step(1, 1, 7500), step(2, 2, 8000)], ..moved() };
    assert_eq!(all(&evidence), []);
    let evidence = Evidence { steps: vec![step(1, 1, 8000)], ..moved() };
    assert_eq!(invariants(&evidence), ["I6"]);
    let evidence = Evidence {
        steps: [(1, 6100), (2, 6200), (1, 6300), (2, 6400)].map(|(process, at)| step(process, 1, at)).into(),
        ..moved()
    };
    assert_eq!(invariants(&evidence), ["I6"]);
}

#[test]
fn what_is_wrong_in_a_checkpoint_or_on_a_disk_is_found() {
    let manifest =
        json!({"job": "a", "epoch": 1, "step": 1, "files": [{"name": "model.safetensors", "blob": "x"}]});
    let chain = blake3::hash(&[blake3::hash(b"a").as_bytes(), &1_u64.to_le_bytes()[..]].concat()).to_string();
    let evidence = |moments: Value| {
        let mut evidence = sound();
        let (id, ready_on) = ("c".to_owned(), vec!["n".to_owned()]);
        evidence.checkpoints.push(Checkpoint {
            id,
            manifest: manifest.clone(),
            ready_on,
            serving_on: Vec::new(),
            wanted_on: 1,
            moments: Some(moments),
        });
        evidence.blobs.insert("x".to_owned(), true);
        evidence
    };
    let moments = |epoch, chain: &str| json!({"job": "a", "epoch": epoch, "step": 1, "chain": chain});
    let sound = evidence(moments(1, &chain));
    assert_eq!(all(&sound), []);
    assert_eq!(invariants(&evidence(moments(2, &chain))), ["I3"]);
    assert_eq!(invariants(&evidence(moments(1, "0"))), ["I9"]);
    let mut told = sound.clone();
    told.told_committed.insert("d".to_owned());
    assert_eq!(invariants(&told), ["I7"]);
    let mut wrong = sound.clone();
    wrong.blobs.insert("x".to_owned(), false);
    assert_eq!(invariants(&wrong), ["I7", "I8"]);
    let mut wrong = sound.clone();
    wrong.wrong_replicas.push(("n".to_owned(), "c".to_owned(), "model.safetensors".to_owned()));
    assert_eq!(invariants(&wrong), ["I8"]);
    let mut missed = sound.clone();
    missed.records.replicas_flipped = 1;
    assert_eq!(invariants(&missed), ["I8"]);
    let dataset = json!({"change": "dataset_registered", "manifest": {"files": [{"blob": "gone"}]}});
    assert_eq!(disks::what_is_referenced_stays(&with(sound, [dataset])).len(), 1);
}

#[test]
fn poison_that_is_not_the_jobs_own_is_found() {
    let crashed = |epoch| ended("b", epoch, json!({"why": "failed", "cause": "crashed"}));
    let mut poisoned = with(
        sound(),
        [submitted("b"), granted("b", 1), crashed(1), granted("b", 2), job_ended("b", "poisoned")],
    );
    poisoned.jobs.insert("b".to_owned(), view("two", "poisoned"));
    poisoned.records.trainers_killed = 2;
    assert_eq!(invariants(&poisoned), ["I10"], "two crashes on one node");
    let mut blamed =
        with(sound(), [submitted("b"), granted("b", 1), crashed(1), job_ended("b", "cancelled")]);
    blamed.jobs.insert("b".to_owned(), view("two", "cancelled"));
    assert_eq!(invariants(&blamed), ["I10"], "a crash of a trainer that nobody killed");
    let mut unheld = with(sound(), [submitted("b"), job_ended("b", "completed")]);
    unheld.jobs.insert("b".to_owned(), view("crashing-1", "completed"));
    assert_eq!(invariants(&unheld), ["I10"], "it crashes wherever it runs");
}

#[test]
fn answers_without_a_reason_and_processes_without_an_end_are_found() {
    let mut mute = sound();
    mute.records.submissions.push(Submission { said: String::new(), ..submission("r", "x", Some(1), None) });
    assert_eq!(invariants(&mute), ["I12"]);
    let mut untold = sound();
    untold.records.disk_full_ms.push((5, 9));
    assert_eq!(invariants(&untold), ["I12"]);
    let mut unsynced = sound();
    unsynced.records.unsynced_ms.push((0, 9));
    unsynced.records.submissions.push(submission("r", "x", Some(0), Some("a")));
    assert_eq!(invariants(&unsynced), ["I7"]);
    let panicked = Evidence { panics: vec!["ada: panicked at".to_owned()], ..sound() };
    assert_eq!(invariants(&panicked), ["I12"]);
    let mut open = sound();
    open.jobs.insert("b".to_owned(), view("two", "queued"));
    assert_eq!(invariants(&open), ["liveness"]);
}

#[test]
fn checks_have_names_of_their_own() {
    let mut names: Vec<_> = CHECKS.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CHECKS.len());
}

fn submission(request: &str, body: &str, code: Option<i32>, job: Option<&str>) -> Submission {
    Submission {
        request: request.to_owned(),
        body: body.to_owned(),
        brings_text: true,
        code,
        job: job.map(str::to_owned),
        said: "a reason".to_owned(),
        time_ms: (1, 2),
    }
}
