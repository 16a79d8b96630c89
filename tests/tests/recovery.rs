//! Processes killed for real, in the middle of their work.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use std::path::Path;

use hatchery_tests::{Fleet, PATIENCE, corpus, processes_with};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const STEPS: u64 = 1500;

/// The id of the trainer that runs under `home`.
fn trainer_of(home: &Path) -> u32 {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        if let [pid] = processes_with(&["hatchery-trainer", "train", &home.display().to_string()])[..] {
            return pid;
        }
        assert!(std::time::Instant::now() < deadline, "no trainer under {}", home.display());
        std::thread::yield_now();
    }
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

fn checkpoint_step(view: &Value) -> u64 {
    view["checkpoint_step"].as_u64().unwrap()
}

/// The blobs of the model, the optimizer and the cursor's sibling figures of a job's last checkpoint.
fn last_blobs(fleet: &Fleet, job: &str) -> Vec<String> {
    let checkpoints = fleet.json(&["checkpoints", job]);
    let last = &checkpoints[0]["manifest"];
    assert_eq!(last["step"], STEPS);
    let files = last["files"].as_array().unwrap().iter();
    files
        .filter(|file| file["name"].as_str().unwrap().ends_with(".safetensors"))
        .map(|file| file["blob"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_killed_trainer_goes_on_and_ends_with_the_same_bits() {
    let fleet = Fleet::with_agents(15, &["ada"]);
    let corpus = corpus(fleet.scratch(), 10);
    let calm = fleet.submit(&corpus, STEPS, 300, &["--name", "calm"]);
    assert_eq!(fleet.watch_to_end(&calm)["phase"], "completed");

    let hurt = fleet.submit(&corpus, STEPS, 300, &["--name", "hurt"]);
    fleet.watch(&hurt, "its second checkpoint", |view| checkpoint_step(view) >= 600);
    kill(trainer_of(&fleet.agent_home("ada")));
    let end = fleet.watch_to_end(&hurt);
    assert_eq!(end["phase"], "completed", "{end:#}");
    assert_eq!(end["epoch"], 2);
    assert_eq!(end["failures"][0]["cause"], "crashed");
    assert!(end["failures"][0]["message"].as_str().unwrap().contains("signal 9"), "{end:#}");
    assert_eq!(last_blobs(&fleet, &calm), last_blobs(&fleet, &hurt), "weights and optimizer, bit for bit");
}

#[test]
fn a_killed_agents_job_finishes_on_the_other_node() {
    let mut fleet = Fleet::with_agents(5, &["ada", "bob"]);
    let corpus = corpus(fleet.scratch(), 10);
    let job = fleet.submit(&corpus, STEPS, 200, &[]);
    let view = fleet.watch(&job, "its first checkpoint", |view| checkpoint_step(view) >= 200);
    let first = view["node"].as_str().unwrap().to_owned();
    fleet.agent(&first).kill();

    let end = fleet.watch_to_end(&job);
    assert_eq!(end["phase"], "completed", "{end:#}");
    assert_ne!(end["node"], first, "it went to the other node");
    assert!(end["epoch"].as_u64().unwrap() >= 2);
    assert_eq!(end["failures"].as_array().unwrap().len(), 0, "a lost node is not the job's failure");
    // It went on from the last committed checkpoint, not from the start.
    let text = fleet.run(&["events", "--job", &job, "--output", "json"]).stdout;
    let grants: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event["kind"] == "lease_granted")
        .collect();
    assert!(grants.len() >= 2);
    assert!(grants[1]["change"]["lease"]["resume_from"].is_string(), "{}", grants[1]);
    // The dead agent's trainer has stopped by itself, and the agent comes back as if nothing was.
    fleet.start_agent(&first);
    fleet.wait_for_node(&first, "connected");
    assert!(
        processes_with(&["hatchery-trainer", "train", &fleet.agent_home(&first).display().to_string()])
            .is_empty()
    );
}

#[test]
fn a_killed_coordinator_costs_no_training() {
    let mut fleet = Fleet::with_agents(15, &["ada"]);
    let corpus = corpus(fleet.scratch(), 10);
    let job = fleet.submit(&corpus, 3 * STEPS, 300, &[]);
    fleet.watch(&job, "its first checkpoint", |view| checkpoint_step(view) >= 300);
    let trainer = trainer_of(&fleet.agent_home("ada"));
    for _ in 0..2 {
        fleet.kill_coordinator();
        assert_eq!(trainer_of(&fleet.agent_home("ada")), trainer, "training goes on without the coordinator");
        fleet.start_coordinator();
        let before = checkpoint_step(&fleet.json(&["job", &job]));
        fleet.watch(&job, "another checkpoint", |view| checkpoint_step(view) > before);
    }
    let end = fleet.watch_to_end(&job);
    assert_eq!((&end["phase"], &end["epoch"]), (&Value::from("completed"), &Value::from(1)), "{end:#}");
}

#[test]
fn a_cancelled_job_stops_through_a_checkpoint() {
    let fleet = Fleet::with_agents(15, &["ada"]);
    let corpus = corpus(fleet.scratch(), 10);
    let job = fleet.submit(&corpus, 1_000_000, 1_000_000, &[]);
    fleet.watch(&job, "a step", |view| view["progress"]["step"].as_u64().unwrap_or(0) > 0);
    let cancelled = fleet.run(&["cancel", &job]);
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    let end = fleet.watch_to_end(&job);
    assert_eq!(end["phase"], "cancelled");
    assert!(checkpoint_step(&end) > 0, "{end:#}");
    assert_eq!(fleet.run(&["cancel", &job]).code, 5, "it has ended already");
}

#[test]
fn an_agent_that_leaves_hands_its_job_over() {
    let mut fleet = Fleet::with_agents(15, &["ada", "bob"]);
    let corpus = corpus(fleet.scratch(), 10);
    let job = fleet.submit(&corpus, 4 * STEPS, 1_000_000, &[]);
    let view = fleet.watch(&job, "a step", |view| view["progress"]["step"].as_u64().unwrap_or(0) > 0);
    let first = view["node"].as_str().unwrap().to_owned();
    fleet.agent(&first).signal(Signal::TERM);
    assert!(fleet.agent(&first).wait(PATIENCE).unwrap().success());
    // The clean stop wrote and committed a checkpoint, so the other node begins there and not at 0.
    let end = fleet.watch_to_end(&job);
    assert_eq!((&end["phase"], &end["epoch"]), (&Value::from("completed"), &Value::from(2)), "{end:#}");
    let checkpoints = fleet.json(&["checkpoints", &job]);
    assert_eq!(checkpoints.as_array().unwrap().len(), 2, "one of the clean stop, one of the end");
}
