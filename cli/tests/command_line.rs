//! What `hatchery` says without a coordinator: help, versions, completions, wrong usage.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use std::process::{Command, Output, Stdio};

fn hatchery(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hatchery"))
        .args(arguments)
        .env("HATCHERY_HOME", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = hatchery(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_teaches_every_command() {
    let help = stdout(&["--help"]);
    for said in ["hatchery up", "Exit codes:", "3 no coordinator answers"] {
        assert!(help.contains(said), "{said}: {help}");
    }
    let commands = [
        "up",
        "coordinator",
        "agent",
        "login",
        "token",
        "certificate",
        "submit",
        "jobs",
        "job",
        "watch",
        "logs",
        "cancel",
        "nodes",
        "node",
        "datasets",
        "checkpoints",
        "push",
        "generate",
        "import",
        "events",
        "status",
        "admin",
        "version",
        "completions",
    ];
    for command in commands {
        assert!(help.contains(&format!("\n  {command}")), "{command} is not in the list");
        assert!(stdout(&[command, "--help"]).contains("Usage:"), "{command}");
    }
    assert!(stdout(&["submit", "--help"]).contains("--set train.steps=500"), "help shows an example");
    assert!(stdout(&["generate", "--help"]).contains("--top-p 0.9 --repetition-penalty 1.2 --stop $'\\n'"));
}

#[test]
fn version_is_also_json() {
    assert!(stdout(&["version"]).starts_with(concat!("hatchery ", env!("CARGO_PKG_VERSION"))));
    let version: serde_json::Value = serde_json::from_str(&stdout(&["version", "--output", "json"])).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let folder = tempfile::tempdir().unwrap();
    stdout(&["man", folder.path().to_str().unwrap()]);
    let page = |name: &str| std::fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
    assert!(page("hatchery").contains("checkpoints"));
    assert!(page("hatchery-submit").contains("preset") && page("hatchery-admin-backup").contains("hatchery"));
    assert!(!folder.path().join("hatchery-man.1").exists(), "the command that writes them is not for people");
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&["completions", shell]).contains("checkpoints"), "{shell}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    for arguments in [
        &["frobnicate"][..],
        &["submit", "--nonsense"],
        &["push", "--to"],
        &["token", "create", "--scope", "king"],
        &["generate", "--top-p", "0"],
        &["generate", "--min-p", "1.5"],
        &["generate", "--repetition-penalty", "0.5"],
        &["generate", "--stop", ""],
    ] {
        let output = hatchery(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    let typo = hatchery(&["agent", "--join", "hatchery-join-typo"]);
    assert_eq!(typo.status.code(), Some(2), "{typo:?}");
}

#[test]
fn a_public_checkpoint_is_imported_without_a_coordinator() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../bdh/tests/data/");
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("imported").display().to_string();
    let file = format!("{data}class-config.pt");
    let made = stdout(&["import", &file, "--out", &out, "--block", "64", "--output", "json"]);
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    assert_eq!((&made["model"]["n_layer"], &made["trained_block"]), (&2.into(), &64.into()), "{made}");
    let mut names: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);

    let code = |arguments: &[&str]| hatchery(arguments).status.code();
    assert_eq!(code(&["import", &file, "--out", &out]), Some(5), "the folder is not empty");
    let bare = format!("{data}bare.pt");
    assert_eq!(code(&["import", &bare, "--out", &format!("{out}2")]), Some(2), "--n-layer is missing");
    let shown = stdout(&["import", &bare, "--n-layer", "2", "--out", &format!("{out}2")]);
    assert!(shown.contains("parameters  4864") && shown.contains("block       not known"), "{shown}");
    assert_eq!(code(&["import", "nowhere.pt", "--out", &format!("{out}3")]), Some(1));
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hatchery"))
        .args(["version"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
}
