//! People who change their minds: pause, resume, requeue, drain, priority, groups, with a real trainer.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use hatchery_tests::{Fleet, corpus};
use serde_json::Value;

/// More steps than are ever made here.
const ENDLESS: u64 = 10_000_000;

fn is_stepping(view: &Value) -> bool {
    view["phase"] == "running" && view["progress"]["step"].as_u64().unwrap_or(0) > 0
}

fn in_phase(phase: &'static str) -> impl Fn(&Value) -> bool {
    move |view| view["phase"] == phase
}

fn step(view: &Value) -> u64 {
    view["checkpoint_step"].as_u64().unwrap()
}

#[test]
fn a_paused_job_goes_on_where_it_was_and_a_drained_node_s_elsewhere() {
    let fleet = Fleet::with_agents(15, &["ada", "bob"]);
    let corpus = corpus(fleet.scratch(), 10);
    let job = fleet.submit(&corpus, ENDLESS, ENDLESS, &[]);
    fleet.watch(&job, "a step", is_stepping);

    let told = fleet.json(&["pause", &job]);
    assert!(told["why"].as_str().unwrap().contains("paused it"), "{told:#}");
    let paused = fleet.watch(&job, "its pause", in_phase("paused"));
    assert!(step(&paused) > 0, "through a checkpoint: {paused:#}");
    assert_eq!(paused["failures"], Value::Array(vec![]));
    fleet.json(&["resume", &job]);
    let resumed = fleet.watch(&job, "a step after the pause", |view| {
        is_stepping(view) && view["progress"]["step"].as_u64().unwrap() > step(&paused)
    });
    assert_eq!(resumed["epoch"], 2);

    let node = resumed["node"].as_str().unwrap().to_owned();
    let other = if node == "ada" { "bob" } else { "ada" };
    assert_eq!(fleet.json(&["node", &node, "--drain"])["mode"], "draining");
    let moved =
        fleet.watch(&job, "a step on the other node", |view| is_stepping(view) && view["node"] == other);
    assert!(step(&moved) >= step(&paused) && moved["epoch"] == 3, "{moved:#}");
    assert_eq!(fleet.json(&["node", &node, "--open"])["mode"], "open");

    let requeued = fleet.json(&["requeue", &job]);
    assert_eq!(requeued["phase"], "running", "until its checkpoint is there");
    fleet.watch(&job, "its next attempt", |view| view["epoch"] == 4 && is_stepping(view));
    fleet.json(&["cancel", &job]);
    assert_eq!(fleet.watch_to_end(&job)["phase"], "cancelled");
    assert_eq!(fleet.run(&["resume", &job]).code, 5, "what has ended stays so");
}

#[test]
fn a_higher_priority_pushes_off_and_the_lower_goes_on_after_it() {
    let fleet = Fleet::with_agents(15, &["ada"]);
    let corpus = corpus(fleet.scratch(), 10);
    let low = fleet.submit(&corpus, ENDLESS, ENDLESS, &["--name", "low"]);
    fleet.watch(&low, "a step", is_stepping);
    let high = fleet.submit(&corpus, 200, 200, &["--name", "high", "--priority", "90"]);
    let shown = fleet.json(&["job", &high, "--why"]);
    assert_eq!(shown["candidates"][0]["node_name"], "ada", "{shown:#}");
    let done = fleet.watch_to_end(&high);
    assert_eq!(done["phase"], "completed", "{done:#}");
    let back = fleet.watch(&low, "a step after the other", |view| view["epoch"] == 2 && is_stepping(view));
    assert!(step(&back) > 0 && back["failures"] == Value::Array(vec![]), "{back:#}");
    let events = fleet.run(&["events", "--job", &low]).stdout;
    assert!(events.contains("makes room for high"), "{events}");
    fleet.json(&["cancel", &low]);
}

#[test]
fn a_grid_is_one_group_and_what_comes_after_waits() {
    let fleet = Fleet::with_agents(15, &["ada"]);
    let corpus = corpus(fleet.scratch(), 10);
    let data = corpus.display().to_string();
    let dry = fleet.json(&["submit", "--data", &data, "--dry-run"]);
    assert_eq!(dry["candidates"][0]["verdict"], "chosen", "{dry:#}");
    assert_eq!(fleet.json(&["jobs"]), Value::Array(vec![]), "nothing was submitted");
    let small = ["model.n_layer=1", "model.n_embd=16", "model.n_head=2", "train.block=32", "train.steps=20"];
    let mut arguments = vec!["submit", "--data", &data, "--name", "tries", "--grid", "train.lr=1e-3,1e-2"];
    for setting in small.iter().chain(&["train.validate_every=10", "train.validation_windows=4"]) {
        arguments.extend(["--set", setting]);
    }
    let jobs = fleet.json(&arguments);
    assert_eq!(jobs.as_array().unwrap().len(), 2, "{jobs:#}");
    let first = jobs[0]["id"].as_str().unwrap();
    let after = fleet.submit(&corpus, 10, 10, &["--after", first]);
    let ranked = fleet.json(&["jobs", "--group", "tries", "--wait"]);
    let losses: Vec<f64> = ranked
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["metrics"]["best"]["loss"].as_f64().unwrap())
        .collect();
    assert!(losses.is_sorted() && losses.len() == 2, "{losses:?}");
    assert_eq!(fleet.watch_to_end(&after)["phase"], "completed");
    assert_eq!(fleet.json(&["cancel", "--group", "tries"]), Value::Array(vec![]), "all have ended");
    assert_eq!(fleet.run(&["jobs", "--group", "none"]).code, 4);
}
