//! `hatchery-trainer generate` and `import`, as a person types them.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

use std::process::{Command, Output};

use serde_json::Value;

fn trainer(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hatchery-trainer")).args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = trainer(&[arguments, &["--output", "json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = trainer(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A folder that holds one imported model under `model`, whose path is given.
fn imported() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model").display().to_string();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../bdh/tests/data/dict-config.pt");
    let made = json(&["import", file, "--out", &model]);
    assert_eq!((&made["model"]["n_embd"], &made["trained_block"]), (&8.into(), &Value::Null));
    assert!(refused(&["import", file, "--out", &model]).contains("not empty"));
    (folder, model)
}

#[test]
fn an_imported_model_answers_as_it_is_told() {
    let (_folder, model) = imported();
    let ask = |more: &[&str]| {
        json(&[&["generate", "--checkpoint", &model, "--prompt", "To be", "--seed", "4"], more].concat())
    };
    let whole = ask(&[]);
    let bytes = |answer: &Value| answer["bytes_hex"].as_str().unwrap().len() / 2;
    assert_eq!((bytes(&whole), &whole["finish_reason"]), (100, &"max_bytes".into()));
    for more in
        [["--top-p", "0.5"], ["--min-p", "0.5"], ["--repetition-penalty", "100"], ["--temperature", "0.5"]]
    {
        assert_ne!(ask(&more)["bytes_hex"], whole["bytes_hex"], "{more:?} changes nothing");
    }
    // Any printable byte of the answer ends it.
    let stop = whole["text"].as_str().unwrap().chars().find(char::is_ascii_alphanumeric).unwrap();
    let stopped = ask(&["--stop", "not there", "--stop", &stop.to_string()]);
    assert_eq!(stopped["finish_reason"], "stop_string");
    assert!(whole["bytes_hex"].as_str().unwrap().starts_with(stopped["bytes_hex"].as_str().unwrap()));
    assert!(bytes(&stopped) < 100 && !stopped["text"].as_str().unwrap().contains(stop));

    let text = trainer(&["generate", "--checkpoint", &model, "--prompt", "To be", "--seed", "4"]);
    let shown = String::from_utf8(text.stdout).unwrap();
    assert_eq!(shown.trim_end_matches('\n'), whole["text"].as_str().unwrap().trim_end_matches('\n'));
    assert!(String::from_utf8(text.stderr).unwrap().contains("100 bytes in"));

    for (flag, wrong) in [("--top-p", "0"), ("--min-p", "2"), ("--repetition-penalty", "0.1"), ("--stop", "")]
    {
        let said = refused(&["generate", "--checkpoint", &model, "--prompt", "x", flag, wrong]);
        assert!(said.contains(&flag[2..].replace('-', "_")), "{said}");
    }
}
