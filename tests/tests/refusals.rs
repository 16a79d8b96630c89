//! Wrong input gets a clear answer, at once, with a code that a script can read; and nothing is lost.

use std::fs;

use hatchery_tests::{Fleet, Run, corpus, run};

fn expect(run: &Run, code: i32, said: &str) {
    assert_eq!(run.code, code, "{run:?}");
    assert!(run.stderr.contains(said), "expected {said:?} in:\n{}", run.stderr);
}

#[test]
fn a_wrong_recipe_names_the_field_and_what_would_be_right() {
    let fleet = Fleet::start(15);
    let corpus = corpus(fleet.scratch(), 5).display().to_string();
    for (setting, said) in [
        ("train.steps=many", "train.steps"),
        ("train.stpes=5", "did you mean `steps`?"),
        ("model.n_embd=130", "model.n_embd: 130 is not divisible by n_head = 4"),
        ("model.mlp_internal_dim_multiplier=0", "model.mlp_internal_dim_multiplier: must be from 1"),
        ("train.lr=nan", "train.lr: must be above 0"),
        ("train.steps=0", "train.steps: must be from 1"),
        ("train.batch=4000000000", "train.batch: must be from 1 to 65536"),
        ("model.n_layer=1e9", "model.n_layer"),
    ] {
        expect(&fleet.run(&["submit", "--data", &corpus, "--set", setting]), 2, said);
    }
    expect(
        &fleet.run(&[
            "submit",
            "--data",
            &corpus,
            "--set",
            "model.n_embd=6",
            "--set",
            "model.n_head=2",
            "--set",
            "model.mlp_internal_dim_multiplier=1",
        ]),
        2,
        "must be even",
    );
    expect(&fleet.run(&["submit", "--data", &corpus, "--preset", "sed"]), 2, "did you mean `seed`?");
    assert_eq!(fleet.json(&["jobs"]).as_array().unwrap().len(), 0, "nothing of it became a job");
}

#[test]
fn a_wrong_corpus_is_refused_by_name_and_size() {
    let fleet = Fleet::start(15);
    let folder = fleet.scratch().join("text");
    fs::create_dir(&folder).unwrap();
    let path = folder.display().to_string();
    expect(&fleet.run(&["submit", "--data", &path]), 2, "no file found");
    fs::write(folder.join("a.md"), "short").unwrap();
    expect(&fleet.run(&["submit", "--data", &path]), 2, "the corpus has 5 bytes");
    expect(&fleet.run(&["submit", "--data", &format!("{path}/../text")]), 2, "`..`");
    expect(&fleet.run(&["submit", "--data", "/nowhere"]), 2, "/nowhere");
    std::os::unix::fs::symlink("/etc/hostname", folder.join("link.md")).unwrap();
    expect(&fleet.run(&["submit", "--data", &path]), 2, "leads out of the folder");
    expect(&fleet.run(&["submit"]), 2, "no data");
    expect(&fleet.run(&["submit", "--dataset", "0123456789ab"]), 4, "no dataset 0123456789ab");
}

#[test]
fn what_is_not_there_is_said_with_its_code() {
    let fleet = Fleet::start(15);
    expect(&fleet.run(&["job", "nothing"]), 4, "nothing");
    expect(&fleet.run(&["node", "nobody"]), 4, "nobody");
    expect(&fleet.run(&["generate", "latest"]), 4, "checkpoint");
    expect(&fleet.run(&["generate", "--temperature", "0"]), 2, "temperature");
    expect(&fleet.run(&["frobnicate"]), 2, "frobnicate");
    let lost = run(fleet.command_in(&fleet.agent_home("lost"), &["nodes"]));
    expect(&lost, 3, "hatchery up");
    let agent = run(fleet.command_in(&fleet.agent_home("lost"), &["agent"]));
    expect(&agent, 5, "hatchery token create");
}

#[test]
fn a_coordinator_that_is_away_is_said_and_named() {
    let mut fleet = Fleet::start(15);
    fleet.kill_coordinator();
    expect(&fleet.run(&["nodes"]), 3, fleet.address());
}

#[test]
fn a_job_that_no_node_can_run_waits_and_says_why() {
    let fleet = Fleet::with_agents(15, &["ada"]);
    let corpus = corpus(fleet.scratch(), 5);
    let job = fleet.submit(&corpus, 10, 10, &["--device", "cuda"]);
    let view = fleet.watch(&job, "a reason", |view| view["why"].is_string());
    assert_eq!(view["phase"], "queued");
    assert!(view["why"].as_str().unwrap().contains("cuda"), "{view:#}");
    let nowhere = fleet.submit(&corpus, 10, 10, &["--node", "mars"]);
    let view = fleet.watch(&nowhere, "a reason", |view| view["why"].is_string());
    assert!(view["why"].as_str().unwrap().contains("mars"), "{view:#}");
}

#[test]
fn a_wrong_setting_is_refused_with_the_near_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("coordinator.toml");
    fs::write(&file, "lease_sec = 5\n").unwrap();
    let hatchery = |arguments: &[&str]| {
        let mut command = std::process::Command::new(hatchery_tests::binary("hatchery"));
        command.args(arguments).env("HATCHERY_HOME", folder.path());
        command
    };
    expect(&run(hatchery(&["coordinator"])), 2, "lease_secs");
    fs::write(&file, "lease_secs = 5\n").unwrap();
    let mut command = hatchery(&["coordinator", "--print-config", "--listen", "127.0.0.1:9"]);
    command.env("HATCHERY_COORDINATOR__LOG_BYTES_MAX", "1000000");
    let shown = run(command);
    assert_eq!(shown.code, 0, "{shown:?}");
    for (key, source) in [
        ("lease_secs", "coordinator.toml"),
        ("listen", "--listen"),
        ("log_bytes_max", "HATCHERY_COORDINATOR__LOG_BYTES_MAX"),
    ] {
        let line = shown
            .stdout
            .lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_else(|| panic!("{key}: {}", shown.stdout));
        assert!(line.contains(source), "{line}");
    }
}

#[test]
fn an_agent_without_a_trainer_says_so_and_still_holds_and_answers() {
    let mut fleet = Fleet::with_agents(15, &["ada"]);
    let join = fleet.token();
    let home = fleet.agent_home("bob");
    let mut bob = hatchery_tests::Process::start(fleet.command_in(
        &home,
        &["agent", "--join", &join, "--name", "bob", "--trainer", "/nowhere/hatchery-trainer"],
    ));
    bob.wait_for_stderr("joined as bob");
    let node = fleet.wait_for_node("bob", "connected");
    assert_eq!(node["inventory"]["trainer"]["state"], "missing");
    assert!(
        node["inventory"]["trainer"]["why"].as_str().unwrap().contains("/nowhere/hatchery-trainer"),
        "{node:#}"
    );
    let corpus = corpus(fleet.scratch(), 5);
    let job = fleet.submit(&corpus, 20, 20, &[]);
    let end = fleet.watch_to_end(&job);
    assert_eq!(end["node"], "ada", "{end:#}");
    assert_eq!(fleet.run(&["push", &job, "--wait"]).code, 0);
    let answer = fleet.json(&["generate", &job, "--node", "bob", "-n", "5", "--greedy"]);
    assert_eq!(answer["node"], "bob");
    fleet.agent("ada").kill();
}

#[test]
fn a_trainer_that_cannot_load_libtorch_is_shown_with_what_it_said() {
    use std::os::unix::fs::PermissionsExt;
    let fleet = Fleet::start(15);
    // The words and the exit code of the system's loader, for a library that is not there.
    let broken = fleet.scratch().join("hatchery-trainer");
    let said = "error while loading shared libraries: libtorch_cpu.so: cannot open shared object file";
    fs::write(&broken, format!("#!/bin/sh\necho \"$0: {said}\" >&2\nexit 127\n")).unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let (join, trainer) = (fleet.token(), broken.display().to_string());
    let arguments = ["agent", "--join", &join, "--name", "bob", "--trainer", &trainer];
    let _bob = hatchery_tests::Process::start(fleet.command_in(&fleet.agent_home("bob"), &arguments));
    let node = fleet.wait_for_node("bob", "connected");
    let why = node["inventory"]["trainer"]["why"].as_str().unwrap();
    assert!(why.contains("libtorch_cpu.so"), "{why}");
    let shown = fleet.run(&["node", "bob"]);
    assert!(shown.stdout.contains("libtorch_cpu.so"), "{shown:?}");
}
