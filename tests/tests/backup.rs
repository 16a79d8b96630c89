//! A fleet that loses its coordinator's machine and goes on from a backup. The trainer is the one of the agent's tests, which
//! does what its corpus says.

use std::fs;

use hatchery_tests::{Fleet, binary};
use serde_json::Value;

/// Steps of the job here.
const STEPS: u64 = 200;

#[test]
fn a_job_goes_on_to_its_end_after_a_restore() {
    let mut fleet = Fleet::start(15);
    let trainer = binary("examples/fake-trainer").display().to_string();
    fleet.start_agent_with("ada", &["--trainer", &trainer]);
    fleet.wait_for_node("ada", "connected");

    let gate = fleet.scratch().join("gate");
    let pad = "a line that says nothing to the trainer\n".repeat(100);
    let script = format!("checkpoint 100\nwait-file {}\ncheckpoint {STEPS}\n{pad}", gate.display());
    let corpus = fleet.scratch().join("script.txt");
    fs::write(&corpus, script).expect("the folder is there");
    let job = fleet.submit(&corpus, STEPS, 100, &["--name", "long"]);
    fleet.watch(&job, "its first checkpoint", |view| view["checkpoint_step"] == 100);
    let before = fleet.json(&["job", &job]);
    assert_eq!(before["epoch"], 1);
    let (nodes, certificates) = (fleet.json(&["nodes"]), fleet.json(&["certificate", "list"]));

    let file = fleet.scratch().join("backup.tar").display().to_string();
    let made = fleet.json(&["admin", "backup", &file, "--with-blobs"]);
    assert_eq!(
        (&made["jobs"], &made["checkpoints"], &made["blobs_missing"]),
        (&1.into(), &1.into(), &0.into())
    );
    let told = fleet.run(&["admin", "backup", &file]);
    assert_eq!(told.code, 5, "a backup is not overwritten: {told:?}");
    let busy = fleet.run(&["admin", "fsck"]);
    assert_eq!(busy.code, 5, "a coordinator has the folder: {busy:?}");

    // What happens after the backup is lost with the coordinator: here, a token and the rest of the attempt.
    fleet.token();
    fleet.kill_coordinator();
    fleet.move_home("other");
    let state = fleet.home().join("coordinator");
    let to = state.display().to_string();
    let restored = fleet.run(&["admin", "restore", &file, "--to", &to]);
    assert_eq!(restored.code, 0, "{restored:?}");
    assert!(restored.stdout.contains("1 were running in the backup and have ended"), "{}", restored.stdout);
    assert_eq!(fleet.run(&["admin", "restore", &file, "--to", &to]).code, 5, "the folder is not empty now");
    let check = fleet.run(&["admin", "fsck"]);
    assert!(check.code == 0 && check.stdout.contains("no problems found"), "{check:?}");
    // The attempt of before the backup comes to its end now. Its lease is over, but the backup knows whose it was, and what it
    // made is further than all else.
    fs::write(&gate, "").expect("the folder is there");
    fleet.start_coordinator();
    fleet.wait_for_node("ada", "connected");

    let end = fleet.watch_to_end(&job);
    assert_eq!((&end["phase"], &end["checkpoint_step"]), (&"completed".into(), &STEPS.into()), "{end:#}");
    assert_eq!(end["submitted_at"], before["submitted_at"]);
    let checkpoints = fleet.json(&["checkpoints", &job]);
    let epochs: Vec<u64> = checkpoints
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|checkpoint| checkpoint["manifest"]["epoch"].as_u64())
        .collect();
    assert_eq!(epochs, [1, 1]);
    let ids = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().map(|one| one["id"].to_string()).collect()
    };
    assert_eq!(ids(&fleet.json(&["nodes"])), ids(&nodes));
    let known = ids(&fleet.json(&["certificate", "list"]));
    assert!(ids(&certificates).iter().all(|id| known.contains(id)), "{known:?}");
    let history = fleet.run(&["events"]).stdout;
    assert!(history.contains("the fleet was restored from a backup"), "{history}");
    assert!(history.contains("delivered late by attempt 1"), "{history}");
}

#[test]
fn a_check_says_what_a_person_has_to_do() {
    let mut fleet = Fleet::start(15);
    fleet.kill_coordinator();
    let state = fleet.home().join("coordinator");
    fs::write(state.join("blobs/partial/put-half"), "half").expect("the folder is there");
    let found = fleet.run(&["admin", "fsck"]);
    assert_eq!(found.code, 1, "{found:?}");
    for said in ["STATE", "repairable", "blobs/partial/put-half", "--repair removes it"] {
        assert!(found.stdout.contains(said), "{said}: {}", found.stdout);
    }
    assert!(found.stderr.contains("--repair would fix 1 problem"), "{}", found.stderr);
    let repaired = fleet.json(&["admin", "fsck", "--repair"]);
    assert_eq!(repaired["findings"][0]["state"], "repaired", "{repaired:#}");
    fs::remove_file(state.join("authority/authority.key.pem")).expect("the key is there");
    let open = fleet.run(&["admin", "fsck", "--repair"]);
    assert_eq!(open.code, 1, "{open:?}");
    assert!(open.stdout.contains("open") && open.stderr.contains("need manual repair"), "{open:?}");
    let nothing = fleet.run(&["admin", "backup", "b.tar", "--state", "nowhere"]);
    assert_eq!(nothing.code, 4, "{nothing:?}");
}
