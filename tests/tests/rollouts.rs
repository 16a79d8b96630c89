//! Rollouts with real processes: pushed, activated, taken back; and what a job does not keep goes.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use hatchery_tests::{Fleet, Process, corpus};
use rustix::process::Signal;
use serde_json::Value;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// The names of the nodes on which a checkpoint is active.
fn active_on(checkpoint: &Value) -> Vec<String> {
    let replicas = checkpoint["replicas"].as_array().unwrap().iter();
    let mut names: Vec<String> = replicas
        .filter(|replica| replica["active"] == true)
        .map(|replica| text(&replica["node_name"]))
        .collect();
    names.sort();
    names
}

fn answering(fleet: &Fleet, node: &str) -> String {
    let answer = fleet.json(&["generate", "first", "--node", node, "--greedy", "-n", "4"]);
    assert_eq!(answer["node"], node);
    text(&answer["checkpoint"])
}

#[test]
fn a_checkpoint_is_pushed_activated_and_taken_back() {
    let mut fleet = Fleet::with_agents(15, &["ada", "bob"]);
    let corpus = corpus(fleet.scratch(), 10);
    let more = ["--name", "first", "--set", "retain.last=2"];
    let job = fleet.submit(&corpus, 60, 20, &more);
    assert_eq!(fleet.watch_to_end(&job)["phase"], "completed");
    let everywhere = |checkpoints: &Value| {
        let newest = &checkpoints[0];
        (newest["manifest"]["step"] == 60 && active_on(newest) == ["ada", "bob"]).then(|| checkpoints.clone())
    };
    let checkpoints = fleet.wait_for(&["checkpoints", "first"], "the newest active everywhere", everywhere);
    let (newest, older) = (text(&checkpoints[0]["id"]), text(&checkpoints[1]["id"]));
    assert_eq!(checkpoints[1]["manifest"]["step"], 40);
    let steps = checkpoints.as_array().unwrap().len();
    assert!(steps == 2 || steps == 3 && checkpoints[2]["is_best"] == true, "{checkpoints:#}");
    assert_eq!([answering(&fleet, "ada"), answering(&fleet, "bob")], [newest.clone(), newest.clone()]);

    let pushed =
        fleet.run(&["push", &older, "--to", "ada", "--activate", "--wait", "--limit-rate", "50MB/s"]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    assert_eq!([answering(&fleet, "ada"), answering(&fleet, "bob")], [older.clone(), newest.clone()]);
    let rollouts = fleet.json(&["rollouts"]);
    let row = |index: usize, key: &str| rollouts[index][key].clone();
    assert_eq!([row(0, "to"), row(0, "step"), row(0, "active")], [Value::from("ada"), 40.into(), 1.into()]);
    assert_eq!([row(1, "by"), row(1, "step"), row(1, "ready")], [Value::Null, 60.into(), 2.into()]);
    assert!(fleet.run(&["rollouts"]).stdout.contains("at most 50.0 MB/s"));
    assert!(fleet.run(&["node", "ada"]).stdout.contains("at step 40 for first"));

    // It is so still after the agent was killed.
    fleet.agent("ada").kill();
    fleet.start_agent("ada");
    fleet.wait_for(&["checkpoints", "first"], "the older one active again", |checkpoints| {
        (active_on(&checkpoints[1]) == ["ada"]).then_some(())
    });
    assert_eq!(answering(&fleet, "ada"), older);

    assert_eq!(fleet.run(&["rollback", "first", "--to", "bob"]).code, 5, "nothing was activated there");
    let back = fleet.run(&["rollback", "first", "--to", "ada"]);
    assert_eq!(back.code, 0, "{back:?}");
    assert!(
        back.stdout.contains(&format!("ada: checkpoint {} becomes active for first", &newest[..12])),
        "{back:?}"
    );
    fleet.wait_for(&["checkpoints", "first"], "the newest active again", everywhere);
    assert_eq!(answering(&fleet, "ada"), newest);
    let left = fleet.json(&["rollouts"]);
    assert_eq!([&left[0]["to"], &left[0]["nodes"]], [&Value::from("ada but ada"), &Value::from(0)]);
    assert_eq!(fleet.run(&["rollback", "first"]).code, 0, "what is left of it");
    let refused = fleet.run(&["rollback", "first"]);
    assert!(refused.code == 5 && refused.stderr.contains("push CHECKPOINT --activate"), "{refused:?}");
    let events = fleet.run(&["events", "--output", "json"]).stdout;
    for kind in ["rollout_started", "rollout_withdrawn"] {
        assert!(events.contains(&format!(r#""kind":"{kind}""#)), "{kind}: {events}");
    }

    // Nobody waits for what will never be, nor longer than they like for what may.
    fleet.agent("bob").kill();
    fleet.wait_for_node("bob", "disconnected");
    let push = || Process::start(fleet.command(&["push", &older, "--to", "bob", "--activate", "--wait"]));
    let mut waiting = push();
    waiting.wait_for_stderr("not connected: bob");
    assert_eq!(fleet.run(&["rollback", "first", "--to", "bob"]).code, 0);
    waiting.wait_for_stderr("bob: the rollout was undone there");
    assert_eq!(waiting.wait().code(), Some(1));
    let mut waiting = push();
    waiting.wait_for_stderr("not connected: bob");
    waiting.signal(Signal::INT);
    assert_eq!(waiting.wait().code(), Some(130));
}
