//! A job that begins with a checkpoint of another: to go on, or to learn something else.

use hatchery_tests::{Fleet, corpus};
use serde_json::Value;

#[test]
fn a_job_goes_on_from_another_ones_checkpoint_or_is_fine_tuned_from_it() {
    let fleet = Fleet::with_agents(15, &["ada"]);
    let corpus = corpus(fleet.scratch(), 20);
    let first = fleet.submit(&corpus, 40, 20, &["--name", "first", "--set", "train.validate_every=20"]);
    assert_eq!(fleet.watch_to_end(&first)["phase"], "completed");
    let checkpoints = |job: &str| fleet.json(&["checkpoints", job]).as_array().cloned().unwrap_or_default();
    let parent = checkpoints("first")[0].clone();
    assert_eq!((&parent["manifest"]["step"], &parent["is_best"]), (&Value::from(40), &Value::from(true)));

    // A run that was meant so long from the start ends with the same weights as one that was given more steps.
    let whole = fleet.submit(&corpus, 60, 20, &["--name", "whole", "--set", "train.validate_every=20"]);
    assert_eq!(fleet.watch_to_end(&whole)["phase"], "completed");
    let more = fleet.run(&["submit", "--from", "first:best", "--set", "train.steps=60", "--wait"]);
    assert_eq!(more.code, 0, "{more:?}");
    let gone_on = checkpoints("first-from-40");
    assert_eq!(gone_on.len(), 1, "it began at step 40: {gone_on:?}");
    assert_eq!(gone_on[0]["manifest"]["parent"], parent["id"]);
    for file in 0..4 {
        let blob = |checkpoint: &Value| checkpoint["manifest"]["files"][file]["blob"].clone();
        assert_eq!(blob(&gone_on[0]), blob(&checkpoints("whole")[0]), "file {file}");
    }

    let tuned = fleet.run(&[
        "submit",
        "--fine-tune",
        "first",
        "--set",
        "train.steps=5",
        "--set",
        "train.block=64",
        "--wait",
    ]);
    assert_eq!(tuned.code, 0, "{tuned:?}");
    let job = fleet.json(&["job", "first-tuned"]);
    let loss = |job: &Value, which: &str| job["metrics"][which].as_f64().unwrap_or(f64::NAN);
    assert!(loss(&job, "first_loss") < loss(&fleet.json(&["job", "first"]), "first_loss") - 0.5, "{job}");
    let tuned = &checkpoints("first-tuned")[0]["manifest"];
    assert_eq!((&tuned["step"], &tuned["parent"]), (&Value::from(5), &parent["id"]));

    let refused = fleet.run(&["submit", "--from", "first"]);
    assert!(refused.code == 5 && refused.stderr.contains("it has 40 steps already"), "{refused:?}");
    assert_eq!(fleet.run(&["submit", "--from", "nothing"]).code, 4);
}
