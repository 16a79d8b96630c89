//! The arrows of Hatchery, kept: who may depend on whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

/// For each of our packages, ours that it may use. What is not here is not allowed.
const ARROWS: [(&str, &[&str]); 24] = [
    ("hatchery-common", &[]),
    ("hatchery-scheduler", &["hatchery-common"]),
    ("hatchery-swarm", &["hatchery-common"]),
    ("hatchery-proto", &["hatchery-common"]),
    ("hatchery-net", &["hatchery-common", "hatchery-proto", "hatchery-swarm"]),
    ("hatchery-bdh", &["hatchery-common"]),
    (
        "hatchery-coordinator",
        &["hatchery-common", "hatchery-net", "hatchery-proto", "hatchery-scheduler", "hatchery-swarm"],
    ),
    (
        "hatchery-agent",
        &["hatchery-bdh", "hatchery-common", "hatchery-fake-trainer", "hatchery-net", "hatchery-proto"],
    ),
    ("hatchery-trainer", &["hatchery-bdh", "hatchery-common", "hatchery-docs", "hatchery-trainer-shim"]),
    ("hatchery-trainer-shim", &[]),
    (
        "hatchery-cli",
        &[
            "hatchery-agent",
            "hatchery-bdh",
            "hatchery-common",
            "hatchery-coordinator",
            "hatchery-docs",
            "hatchery-net",
            "hatchery-proto",
        ],
    ),
    (
        "hatchery-sim",
        &[
            "hatchery-agent",
            "hatchery-common",
            "hatchery-coordinator",
            "hatchery-fake-trainer",
            "hatchery-net",
            "hatchery-proto",
            "hatchery-scheduler",
        ],
    ),
    ("hatchery-tests", &["hatchery-common", "hatchery-test-support"]),
    ("hatchery-test-support", &[]),
    ("hatchery-fake-trainer", &["hatchery-common"]),
    (
        "hatchery-fuzz",
        &["hatchery-bdh", "hatchery-common", "hatchery-net", "hatchery-proto", "hatchery-swarm"],
    ),
    ("hatchery-docs", &["hatchery-common"]),
    ("hatchery-bench-engine", &["hatchery-bdh", "hatchery-common", "hatchery-fake-trainer"]),
    (
        "hatchery-bench-fanout",
        &[
            "hatchery-bdh",
            "hatchery-common",
            "hatchery-fake-trainer",
            "hatchery-net",
            "hatchery-proto",
            "hatchery-test-support",
        ],
    ),
    (
        "hatchery-bench-reconnect",
        &["hatchery-agent", "hatchery-common", "hatchery-coordinator", "hatchery-net", "hatchery-proto"],
    ),
    ("hatchery-bench-scheduler", &["hatchery-common", "hatchery-scheduler"]),
    ("hatchery-bench-swarm", &["hatchery-common", "hatchery-swarm"]),
    (
        "hatchery-bench-trainer",
        &[
            "hatchery-bdh",
            "hatchery-common",
            "hatchery-fake-trainer",
            "hatchery-trainer",
            "hatchery-trainer-shim",
        ],
    ),
    ("xtask", &["hatchery-docs", "hatchery-test-support"]),
];

/// Outside crates that only some of ours may use, directly or through others.
const KEPT_OUT: [(&str, &[&str]); 7] = [
    ("tch", &["hatchery-trainer", "hatchery-trainer-shim", "hatchery-bench-trainer"]),
    ("torch-sys", &["hatchery-trainer", "hatchery-trainer-shim", "hatchery-bench-trainer"]),
    (
        "prost",
        &[
            "hatchery-proto",
            "hatchery-net",
            "hatchery-coordinator",
            "hatchery-agent",
            "hatchery-cli",
            "hatchery-sim",
            "hatchery-fuzz",
            "hatchery-bench-fanout",
            "hatchery-bench-reconnect",
        ],
    ),
    (
        "tokio",
        &[
            "hatchery-proto",
            "hatchery-net",
            "hatchery-coordinator",
            "hatchery-agent",
            "hatchery-cli",
            "hatchery-sim",
            "hatchery-fuzz",
            "hatchery-bench-fanout",
            "hatchery-bench-reconnect",
        ],
    ),
    ("rusqlite", &["hatchery-coordinator", "hatchery-cli", "hatchery-sim", "hatchery-bench-reconnect"]),
    ("turmoil", &["hatchery-sim"]),
    ("aws-lc-rs", &[]),
];

#[test]
fn crates_depend_only_along_the_arrows() {
    let metadata = metadata();
    let allowed: BTreeMap<_, _> = ARROWS.into_iter().collect();
    let members: BTreeSet<&str> = metadata["workspace_members"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|id| name_of(&metadata, id.as_str()?))
        .collect();
    assert_eq!(members, allowed.keys().copied().collect(), "a new crate needs its arrows here");
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed.get(name) else { continue };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let dependency = dependency["name"].as_str().unwrap_or_default();
            let ours = dependency.starts_with("hatchery-");
            assert!(!ours || allowed.contains(&dependency), "{name} must not use {dependency}");
        }
    }
}

#[test]
fn what_is_kept_out_is_out() {
    let metadata = metadata();
    for (outside, allowed) in KEPT_OUT {
        let users: BTreeSet<&str> =
            ARROWS.iter().map(|(name, _)| *name).filter(|name| reaches(&metadata, name, outside)).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        let wrong: Vec<_> = users.difference(&allowed).collect();
        assert!(wrong.is_empty(), "{outside} has come into {wrong:?}");
    }
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs, since it runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn name_of<'a>(metadata: &'a Value, id: &str) -> Option<&'a str> {
    metadata["packages"].as_array()?.iter().find(|package| package["id"] == id)?["name"].as_str()
}

/// Whether the package `from` uses `to` in its normal build, directly or through others.
fn reaches(metadata: &Value, from: &str, to: &str) -> bool {
    let nodes: BTreeMap<&str, &Value> = metadata["resolve"]["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let start = nodes.keys().copied().find(|id| name_of(metadata, id) == Some(from));
    let mut todo: Vec<&str> = start.into_iter().collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        if name_of(metadata, id) == Some(to) {
            return true;
        }
        for dependency in nodes.get(id).and_then(|node| node["deps"].as_array()).into_iter().flatten() {
            let normal = dependency["dep_kinds"]
                .as_array()
                .is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()));
            if let (true, Some(id)) = (normal, dependency["pkg"].as_str()) {
                todo.push(id);
            }
        }
    }
    false
}
