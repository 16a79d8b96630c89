//! A model that was really trained, far beyond its trained block: with the default window it holds, without it does not.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use std::fs;

use support::{corpus, json, output, text};

#[test]
fn with_the_window_a_model_holds_far_beyond_its_block() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let data = corpus();
    let trained = output(&[
        "train",
        "--preset",
        "tiny",
        "--data",
        text(&data),
        "--out",
        text(&out),
        "--threads",
        "1",
        "--set",
        "model.n_layer=2",
        "--set",
        "model.n_embd=32",
        "--set",
        "model.n_head=2",
        "--set",
        "model.mlp_internal_dim_multiplier=16",
        "--set",
        "model.dropout=0",
        "--set",
        "train.block=32",
        "--set",
        "train.batch=16",
        "--set",
        "train.steps=400",
        "--set",
        "train.lr=0.003",
        "--set",
        "train.warmup_steps=20",
        "--set",
        "train.checkpoint_every=400",
    ]);
    assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
    let checkpoint = out.join("step-000000400");
    let held_out = folder.path().join("text");
    fs::write(&held_out, &fs::read(&data).unwrap()[..40_000]).unwrap();

    let arguments = [
        "eval",
        "--checkpoint",
        text(&checkpoint),
        "--data",
        text(&held_out),
        "--by-position",
        "--output",
        "json",
    ];
    let lines = json(&arguments);
    let lines = lines.as_array().unwrap();
    let losses = |name: &str| lines.iter().map(|line| line[name].as_f64().unwrap()).collect::<Vec<_>>();
    let (window, without) = (losses("loss"), losses("loss_without_window"));
    assert_eq!(lines.len(), 5);
    // Within the block both see the same.
    assert!((window[0] - without[0]).abs() < 1e-6);
    assert!(window[0] < 3.0, "it has learnt something: {}", window[0]);
    // At 8 to 16 blocks.
    assert!(window[4] < window[0] + 0.1, "{window:?}");
    assert!(without[4] > window[4] + 0.1, "{without:?}");

    // In bf16 the loss is the same to 0.01.
    let mut arguments = arguments.to_vec();
    arguments.extend(["--precision", "bf16"]);
    let narrow = json(&arguments);
    for (narrow, wide) in narrow.as_array().unwrap().iter().zip(window) {
        let difference = narrow["loss"].as_f64().unwrap() - wide;
        assert!(difference.abs() < 0.01, "{difference}");
    }
}
