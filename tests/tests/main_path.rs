//! The main path, as a person walks it: a job is submitted, learns, and every node answers.

use hatchery_tests::{Fleet, Process, binary, corpus, run};
use serde_json::Value;

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[test]
fn a_submitted_job_ends_as_an_answering_model_on_every_node() {
    let fleet = Fleet::with_agents(15, &["ada", "bob"]);
    let corpus = corpus(fleet.scratch(), 20);
    let submitted = fleet.run(&[
        "submit",
        "--preset",
        "tiny",
        "--data",
        &corpus.display().to_string(),
        "--include",
        "**/*.md",
        "--name",
        "first",
        "--set",
        "train.steps=60",
        "--set",
        "train.checkpoint_every=20",
        "--set",
        "train.validate_every=20",
        "--set",
        "train.block=64",
        "--wait",
    ]);
    assert_eq!(submitted.code, 0, "{submitted:?}");
    for said in
        ["step 20: checkpoint", "step 60: validation loss", "checkpoint on 2/2: ada, bob", "completed"]
    {
        assert!(submitted.stdout.contains(said), "{said}: {}", submitted.stdout);
    }

    let job = fleet.json(&["job", "first"]);
    assert_eq!(job["phase"], "completed");
    assert_eq!(job["epoch"], 1);
    let (first, last) = (number(&job["metrics"]["first_loss"]), number(&job["metrics"]["train_loss"]));
    assert!(first > 5.0 && last < 3.5 && last < first, "{first} -> {last}");
    assert!(number(&job["metrics"]["validation_loss"]) < 3.5);

    let checkpoints = fleet.json(&["checkpoints", "first"]);
    let steps: Vec<_> =
        checkpoints.as_array().unwrap().iter().map(|c| c["manifest"]["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [60, 40, 20]);

    let pushed = fleet.run(&["push", "latest", "--wait", "--output", "json"]);
    let pushed: Value = serde_json::from_str(pushed.stdout.lines().last().unwrap()).unwrap();
    assert!(
        pushed["replicas"].as_array().unwrap().iter().all(|replica| replica["state"]["state"] == "ready")
    );
    let ask =
        ["generate", "first", "--prompt", "the dragon ", "--max-bytes", "40", "--greedy", "--all-nodes"];
    let answers = fleet.json(&ask);
    let answers = answers.as_array().unwrap();
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0]["bytes_hex"], answers[1]["bytes_hex"], "one checkpoint, one answer");
    for answer in answers {
        assert_eq!(answer["bytes"], 40);
        assert!(number(&answer["latency_ms"]) < 500.0, "{answer}");
    }
    let again =
        fleet.json(&["generate", "first", "--prompt", "the ", "--node", "ada", "--seed", "3", "-n", "20"]);
    assert_eq!(
        (&again["node"], &again["loaded"]),
        (&Value::from("ada"), &Value::from(false)),
        "it stays loaded"
    );
    let streamed = fleet.run(&["generate", "first", "--prompt", "the ", "--greedy", "-n", "20"]);
    assert!(streamed.stdout.starts_with("the ") && streamed.stderr.contains("20 bytes from"), "{streamed:?}");
    assert!(streamed.stderr.contains("ended at the byte limit"), "{streamed:?}");
    let stopped = fleet.json(&["generate", "first", "--prompt", "the ", "--greedy", "--stop", " "]);
    assert_eq!(stopped["finish_reason"], "stop_string", "{stopped}");
    assert!(!stopped["text"].as_str().unwrap().contains(' '), "{stopped}");
    // At this temperature every byte is as likely as another: most are no text, and none is shown by halves.
    let noise = ["generate", "first", "--temperature", "1000", "--top-p", "0.99", "-n", "100"];
    let shown = fleet.command(&noise).output().unwrap().stdout;
    assert!(std::str::from_utf8(&shown).unwrap().contains('\u{fffd}'));

    let logs = fleet.run(&["logs", "first"]);
    assert!(logs.code == 0 && !logs.stdout.is_empty(), "{logs:?}");
    let events = fleet.run(&["events", "--job", "first", "--output", "json"]);
    let kinds: Vec<String> = events
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        kinds,
        [
            "job_submitted",
            "lease_granted",
            "checkpoint_committed",
            "checkpoint_committed",
            "checkpoint_committed",
            "job_ended"
        ]
    );
    assert_eq!(fleet.json(&["datasets"])[0]["files"], 20);
}

#[test]
fn one_machine_needs_no_flags() {
    let folder = tempfile::tempdir().unwrap();
    let hatchery = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binary("hatchery"));
        command.args(arguments).env("HATCHERY_HOME", folder.path());
        command
    };
    // The one thing a test changes: a free port, so that tests do not meet.
    let mut up = Process::start(hatchery(&["up", "--listen", "127.0.0.1:0"]));
    up.wait_for_stderr("ready at");
    up.wait_for_stderr("joined as");
    let corpus = corpus(folder.path(), 5);
    let submitted = run(hatchery(&[
        "submit",
        "--data",
        &corpus.display().to_string(),
        "--set",
        "train.steps=10",
        "--set",
        "train.block=32",
        "--wait",
    ]));
    assert_eq!(submitted.code, 0, "{submitted:?}");
    let answer = run(hatchery(&["generate", "--prompt", "the ", "--greedy", "-n", "5", "--output", "json"]));
    assert_eq!(answer.code, 0, "{answer:?}");
    // A second one on the same folder is refused, and says by whom.
    let second = run(hatchery(&["coordinator", "--listen", "127.0.0.1:0"]));
    assert!(second.code == 1 && second.stderr.contains(&up.pid().to_string()), "{second:?}");
    up.signal(rustix::process::Signal::INT);
    assert!(up.wait().success());
}
