//! Nodes that only answer get the weights in bf16 and nothing else, with real processes.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use std::{collections::BTreeSet, fs};

use hatchery_tests::{Fleet, corpus};
use serde_json::Value;

/// A model of some megabytes, trained for a moment.
const LARGE: [&str; 6] =
    ["--set", "model.n_embd=64", "--set", "model.mlp_internal_dim_multiplier=64", "--set", "train.batch=1"];

/// The newest checkpoint of a job once it answers on both nodes.
fn ready(fleet: &Fleet, job: &str) -> Value {
    fleet.wait_for(&["checkpoints", job], "it answers on both nodes", |checkpoints| {
        let replicas = checkpoints[0]["replicas"].as_array()?;
        let ready = replicas.iter().filter(|replica| replica["state"]["state"] == "ready").count();
        (ready == 2).then(|| checkpoints[0].clone())
    })
}

fn serving_only_on(checkpoint: &Value) -> Vec<&str> {
    let replicas = checkpoint["replicas"].as_array().unwrap().iter();
    let serving = replicas.filter(|replica| replica["serving_only"] == true);
    serving.map(|replica| replica["node_name"].as_str().unwrap()).collect()
}

/// The bytes of the files that a node has of a checkpoint, and their names.
fn files(fleet: &Fleet, node: &str, checkpoint: &Value) -> (u64, BTreeSet<String>) {
    let folder = fleet.agent_home(node).join("agent/checkpoints").join(checkpoint["id"].as_str().unwrap());
    let (mut bytes, mut names) = (0, BTreeSet::new());
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name != "manifest.json" {
            bytes += entry.metadata().unwrap().len();
            names.insert(name);
        }
    }
    (bytes, names)
}

#[test]
fn a_node_that_only_answers_gets_a_sixth_and_one_that_goes_on_gets_the_rest() {
    let fleet = Fleet::with_agents(15, &["ada", "bob"]);
    let corpus = corpus(fleet.scratch(), 4);
    let more = ["--name", "first", "--node", "ada", "--replicate-weights", "bf16"];
    let job = fleet.submit(&corpus, 2, 2, &[&LARGE[..], &more].concat());
    assert_eq!(fleet.watch_to_end(&job)["phase"], "completed");
    let checkpoint = ready(&fleet, &job);
    assert_eq!(serving_only_on(&checkpoint), ["bob"]);
    assert!(fleet.run(&["checkpoints", "first"]).stdout.contains("2/2: ada, bob (bf16)"));
    let (all_bytes, all) = files(&fleet, "ada", &checkpoint);
    let (few_bytes, few) = files(&fleet, "bob", &checkpoint);
    assert_eq!(few, BTreeSet::from(["config.json", "model.safetensors"].map(str::to_owned)));
    assert_eq!(all.len(), 5);
    // Whole it would be these and two moments for each weight; what is made for the others does not count.
    let trained_bytes = all_bytes - few_bytes;
    assert!(few_bytes * 59 / 10 < trained_bytes && few_bytes > 1 << 20, "{few_bytes} of {trained_bytes}");
    let received = |node: &str| fleet.json(&["node", node])["peers"]["received_bytes"].as_u64();
    fleet.wait_for(&["node", "bob"], "it has received them", |node| {
        (node["peers"]["received_bytes"].as_u64()? + 4096 >= few_bytes).then_some(())
    });
    // A loaded machine may send some pieces twice at the end; the whole would be six times as much.
    assert!(received("bob") < Some(few_bytes * 2), "{:?} of {few_bytes}", received("bob"));
    let answer = fleet.json(&["generate", "first", "--node", "bob", "--greedy", "-n", "8"]);
    assert_eq!((&answer["node"], &answer["checkpoint"]), (&Value::from("bob"), &checkpoint["id"]));

    let more = fleet.run(&["submit", "--from", "first", "--set", "train.steps=4", "--node", "bob", "--wait"]);
    assert_eq!(more.code, 0, "{more:?}");
    assert_eq!(files(&fleet, "bob", &checkpoint), (all_bytes, all), "now it has all of it");
    let gone_on = ready(&fleet, "first-from-2");
    assert_eq!(gone_on["manifest"]["parent"], checkpoint["id"]);
    assert_eq!(serving_only_on(&gone_on), ["ada"], "it goes on as the job before did");
}
