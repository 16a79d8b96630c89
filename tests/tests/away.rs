//! A machine that is its owner's for now, as real processes see it; the trainer needs no libtorch.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use std::time::{SystemTime, UNIX_EPOCH};

use hatchery_tests::{Fleet, PATIENCE, binary};
use rustix::process::Signal;

/// A whole day of the week that is neither today nor tomorrow, by UTC.
fn another_day() -> &'static str {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400;
    // The first of those days was a Thursday.
    ["thu", "fri", "sat", "sun", "mon", "tue", "wed"][(days as usize + 3) % 7]
}

#[test]
fn outside_its_hours_a_machine_is_given_nothing_and_everybody_is_told_why() {
    let mut fleet = Fleet::start(15);
    let trainer = binary("examples/fake-trainer").display().to_string();
    let usual = ["--trainer", &trainer];
    fleet.start_agent_with("ada", &[&usual[..], &["--hours", another_day()]].concat());
    let away = |nodes: &serde_json::Value| nodes[0]["away"].as_object().cloned();
    let away = fleet.wait_for(&["nodes"], "the node says that it is away", away);
    assert_eq!(away["reason"], "outside_hours");
    assert!(away["until"]["at"].as_u64().is_some(), "{away:?}");

    let pad = "a line that says nothing to the trainer\n".repeat(100);
    let script = fleet.scratch().join("script");
    std::fs::write(&script, format!("progress 1\nwait\n{pad}")).unwrap();
    let job = fleet.submit(&script, 10, 5, &[]);
    let why = |job: &serde_json::Value| job["why"].as_str().map(str::to_owned);
    let why = fleet.wait_for(&["job", &job], "a reason", why);
    assert!(
        why.starts_with("waiting: ada, which could run this, is away: outside its hours, until "),
        "{why}"
    );
    let placement = fleet.json(&["job", &job, "--why"]);
    assert_eq!(placement["candidates"][0]["verdict"], "node_away", "{placement:#}");
    let shown = fleet.run(&["node", "ada"]).stdout;
    assert!(shown.contains("connected, away: outside its hours, until "), "{shown}");

    // Its owner thinks better of it.
    fleet.agent("ada").signal(Signal::TERM);
    assert!(fleet.agent("ada").wait(PATIENCE).is_some());
    fleet.start_agent_with("ada", &usual);
    fleet.watch(&job, "a step", |view| view["phase"] == "running" && view["progress"]["step"] == 1);
}
