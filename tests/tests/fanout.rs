//! Checkpoints from node to node, with real processes.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use hatchery_tests::{Fleet, corpus};
use serde_json::Value;

/// A model of some megabytes, trained for a moment.
const LARGE: [&str; 6] =
    ["--set", "model.n_embd=64", "--set", "model.mlp_internal_dim_multiplier=64", "--set", "train.batch=1"];

fn model_bytes(fleet: &Fleet, job: &str) -> u64 {
    let checkpoints = fleet.json(&["checkpoints", job]);
    let files = checkpoints[0]["manifest"]["files"].as_array().unwrap().clone();
    let model = files.iter().find(|file| file["name"] == "model.safetensors").unwrap();
    model["size_bytes"].as_u64().unwrap()
}

/// Waits until the job's newest checkpoint answers on so many nodes.
fn wait_for_replicas(fleet: &Fleet, job: &str, count: usize) {
    fleet.wait_for(&["checkpoints", job], &format!("{count} replicas"), |checkpoints| {
        let replicas = checkpoints[0]["replicas"].as_array()?;
        let ready = replicas.iter().filter(|replica| replica["state"]["state"] == "ready").count();
        (ready == count).then_some(())
    });
}

fn peers(fleet: &Fleet, node: &str) -> Value {
    fleet.json(&["node", node])["peers"].clone()
}

/// Waits until a node says that it has received so many bytes from others.
fn wait_for_received(fleet: &Fleet, node: &str, bytes: u64) {
    fleet.wait_for(&["node", node], &format!("{node} has received {bytes} bytes"), |view| {
        (view["peers"]["received_bytes"].as_u64()? >= bytes).then_some(())
    });
}

#[test]
fn a_checkpoint_goes_from_node_to_node_and_to_those_that_come_late() {
    let mut fleet = Fleet::with_agents(15, &["ada", "bob", "cyd"]);
    let corpus = corpus(fleet.scratch(), 4);
    let job = fleet.submit(&corpus, 2, 2, &LARGE);
    assert_eq!(fleet.watch_to_end(&job)["phase"], "completed");
    wait_for_replicas(&fleet, &job, 3);
    let bytes = model_bytes(&fleet, &job);
    assert!(bytes > 3 << 20, "{bytes}");
    let trained_on = fleet.json(&["job", &job])["node"].as_str().unwrap().to_owned();
    for node in ["ada", "bob", "cyd"].into_iter().filter(|node| *node != trained_on) {
        wait_for_received(&fleet, node, bytes);
        assert!(peers(&fleet, node)["can_be_dialled"].as_bool().unwrap());
    }

    // The coordinator's copy is gone: the nodes have it, and give it to one that comes now.
    let checkpoints = fleet.json(&["checkpoints", &job]);
    let files = checkpoints[0]["manifest"]["files"].as_array().unwrap().clone();
    let model = files.iter().find(|file| file["name"] == "model.safetensors").unwrap();
    let blob = model["blob"].as_str().unwrap();
    let path = fleet.home().join("coordinator/blobs").join(&blob[..2]).join(format!("{blob}.data"));
    assert!(path.exists(), "{}", path.display());
    std::fs::remove_file(&path).unwrap();
    fleet.start_agent("dan");
    wait_for_replicas(&fleet, &job, 4);
    wait_for_received(&fleet, "dan", bytes);
    let sent: u64 = ["ada", "bob", "cyd"]
        .into_iter()
        .map(|node| peers(&fleet, node)["sent_bytes"].as_u64().unwrap())
        .sum();
    assert!(sent >= bytes, "{sent} of {bytes}: only they had it");
}

#[test]
fn a_node_that_sends_wrong_bytes_is_found_out_and_shown() {
    let mut fleet = Fleet::with_agents(15, &["ada", "bob"]);
    let flips = [("FAILPOINTS", "peers::flips_a_bit=return")];
    fleet.start_agent_in("eve", &[], &flips);
    fleet.wait_for_node("eve", "connected");
    let corpus = corpus(fleet.scratch(), 4);
    let mut asked = LARGE.to_vec();
    asked.extend(["--node", "eve"]);
    let job = fleet.submit(&corpus, 2, 2, &asked);
    let end = fleet.watch_to_end(&job);
    assert_eq!((&end["phase"], &end["node"]), (&Value::from("completed"), &Value::from("eve")), "{end:#}");
    wait_for_replicas(&fleet, &job, 3);
    let suspected = fleet.wait_for(&["node", "eve"], "eve is found out", |view| {
        let by = view["peers"]["suspected_by"].as_array()?.clone();
        (!by.is_empty()).then_some(by)
    });
    assert!(suspected.iter().all(|by| by == "ada" || by == "bob"), "{suspected:?}");
    let shown = fleet.run(&["node", "eve"]).stdout;
    assert!(shown.contains("it sent corrupt data to"), "{shown}");
    fleet.json(&["node", "eve", "--open"]);
    assert_eq!(peers(&fleet, "eve")["suspected_by"], Value::Array(Vec::new()), "it is forgiven");
}

#[test]
fn the_coordinator_may_go_once_another_has_the_checkpoint() {
    let mut fleet = Fleet::with_agents(15, &["ada", "bob"]);
    let corpus = corpus(fleet.scratch(), 4);
    let mut asked = LARGE.to_vec();
    asked.extend(["--node", "ada", "--replicate-to", "none"]);
    let job = fleet.submit(&corpus, 2, 2, &asked);
    assert_eq!(fleet.watch_to_end(&job)["phase"], "completed");
    // Slowly enough to go while it comes.
    fleet.json(&["push", &job, "--to", "ada,bob", "--limit-rate", "1MB/s"]);
    fleet.wait_for(&["checkpoints", &job], "some of it is on bob", |checkpoints| {
        let mut replicas = checkpoints[0]["replicas"].as_array()?.iter();
        let state = &replicas.find(|replica| replica["node_name"] == "bob")?["state"];
        (state["done_bytes"].as_u64()? > 1 << 20).then_some(())
    });
    fleet.kill_coordinator();
    fleet.wait_for_line("bob", "checkpoint fetched");
    fleet.start_coordinator();
    wait_for_replicas(&fleet, &job, 2);
}

#[test]
fn a_node_that_wants_no_peers_has_all_from_the_coordinator() {
    let mut fleet = Fleet::with_agents(15, &["ada"]);
    fleet.start_agent_in("bob", &[], &[("HATCHERY_AGENT__PEERS__ENABLED", "false")]);
    fleet.wait_for_node("bob", "connected");
    let corpus = corpus(fleet.scratch(), 4);
    let mut asked = LARGE.to_vec();
    asked.extend(["--node", "ada"]);
    let job = fleet.submit(&corpus, 2, 2, &asked);
    assert_eq!(fleet.watch_to_end(&job)["phase"], "completed");
    wait_for_replicas(&fleet, &job, 2);
    assert_eq!(peers(&fleet, "bob"), Value::Null, "it says nothing of peers");
}
