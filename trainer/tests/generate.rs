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

#[test]
fn a_session_goes_on_as_if_never_interrupted_and_can_be_forked() {
    let (folder, model) = imported();
    let ask =
        |more: &[&str]| json(&[&["generate", "--checkpoint", &model], more].concat())["bytes_hex"].clone();
    let hex = |value: Value| value.as_str().unwrap().to_owned();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let (first, second) = (first.to_str().unwrap(), second.to_str().unwrap());
    let begin = ["--prompt", "To be", "--seed", "4", "--repetition-penalty", "1.5"];
    let whole = hex(ask(&[&begin[..], &["--max-bytes", "90"]].concat()));
    let start = hex(ask(&[&begin[..], &["--max-bytes", "40", "--save-session", first]].concat()));
    let saved = std::fs::read(first).unwrap();
    let middle = hex(ask(&["--session", first, "--max-bytes", "20", "--save-session", second]));
    let end = hex(ask(&["--session", second, "--max-bytes", "30"]));
    assert_eq!(whole, format!("{start}{middle}{end}"));
    // The first is still what it was: a fork by another seed goes another way, and with its own sampling the same.
    assert_eq!(std::fs::read(first).unwrap(), saved);
    assert_ne!(hex(ask(&["--session", first, "--max-bytes", "20", "--seed", "5"])), middle);
    assert_eq!(hex(ask(&["--session", first, "--max-bytes", "20"])), middle);
    // More text first, and put away under the same name.
    let told =
        hex(ask(&["--session", first, "--prompt", " or not", "--max-bytes", "20", "--save-session", first]));
    assert_ne!(told, middle);
    assert_ne!(std::fs::read(first).unwrap(), saved);

    let other = folder.path().join("other").display().to_string();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../bdh/tests/data/class-config.pt");
    json(&["import", file, "--out", &other]);
    let said = refused(&["generate", "--checkpoint", &other, "--session", second]);
    assert!(said.contains("belongs to another model"), "{said}");
    let said = refused(&["generate", "--checkpoint", &model, "--session", &format!("{model}/config.json")]);
    assert!(said.contains("not a complete session file"), "{said}");
    let unsaid = trainer(&["generate", "--checkpoint", &model]);
    assert_eq!(unsaid.status.code(), Some(2), "neither a prompt nor a session: {unsaid:?}");
}

#[test]
fn samples_are_the_answers_of_one_seed_after_another() {
    let (_folder, model) = imported();
    let ask = |more: &[&str]| {
        json(
            &[&["generate", "--checkpoint", &model, "--prompt", "To be", "--max-bytes", "30"], more].concat(),
        )
    };
    let samples = ask(&["--seed", "7", "--samples", "3"]);
    let samples = samples["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 3);
    for (sample, seed) in samples.iter().zip(["7", "8", "9"]) {
        let alone = ask(&["--seed", seed]);
        assert_eq!(sample["seed"].to_string(), seed);
        assert_eq!(
            (&sample["bytes_hex"], &sample["finish_reason"]),
            (&alone["bytes_hex"], &alone["finish_reason"])
        );
    }
    assert_ne!(samples[0]["bytes_hex"], samples[1]["bytes_hex"]);
    let text =
        trainer(&["generate", "--checkpoint", &model, "--prompt", "To be", "--seed", "7", "--samples", "2"]);
    let shown = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(shown.contains("--- seed 7, to the byte limit\n") && shown.contains("--- seed 8"), "{shown}");
    assert!(String::from_utf8_lossy(&text.stderr).contains("200 bytes in"));
    // Always the likeliest byte: all would be the same.
    let greedy =
        trainer(&["generate", "--checkpoint", &model, "--prompt", "x", "--samples", "2", "--greedy"]);
    assert_eq!(greedy.status.code(), Some(2));
    let said = refused(&["generate", "--checkpoint", &model, "--prompt", "x", "--device", "cuda:63"]);
    assert!(said.contains("cuda:63 cannot be used here"), "{said}");
}
