//! Each benchmark runs to its end, and says what it lacks.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// 200,000 bytes of public-domain text.
fn corpus() -> PathBuf {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../trainer/tests/data/shakespeare.txt");
    text.canonicalize().unwrap()
}

/// The binary, with the settings for which it would start anew.
fn bench() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hatchery-bench-trainer"));
    command.envs([("OMP_WAIT_POLICY", "PASSIVE"), ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")]);
    command.env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
    command
}

fn output(arguments: &[&str]) -> Output {
    bench().args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn json(arguments: &[&str]) -> serde_json::Value {
    let output = output(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_bench_compares_what_is_there_and_says_what_is_not() {
    // No program is found there, and so no python.
    let arguments = ["train", "--shape", "tiny", "--steps", "2", "--repeats", "1", "--threads", "1"];
    let mut bench = bench();
    let output = bench.env("PATH", "").args(arguments).args(["--output", "json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("no python with torch was found"), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = report["lines"].as_array().unwrap();
    let names: Vec<_> = lines.iter().map(|line| line["contender"].as_str().unwrap()).collect();
    assert_eq!(names, ["fast", "plain"]);
    assert!(lines.iter().all(|line| line["step_secs"].as_f64().unwrap() > 0.0));
    let memory = |line: usize| lines[line]["memory_bytes"].as_u64().unwrap();
    if cfg!(target_os = "linux") {
        assert!(memory(0) < memory(1), "one sequence at a time takes less than all at once");
        assert!(lines[0]["page_faults_per_step"].as_u64().is_some());
    }
    for figure in ["step_gflop", "fast_gflops", "sgemm_gflops"] {
        assert!(report[figure].as_f64().unwrap() > 0.0, "{figure}");
    }
    let overhead = report["overhead"].as_object().unwrap();
    for figure in ["step_secs", "validation_secs", "snapshot_secs", "write_cpu_secs", "report_secs"] {
        assert!(overhead[figure].as_f64().unwrap() > 0.0, "{figure}");
    }
}

#[test]
fn a_bench_says_what_is_missing_before_it_measures() {
    let file = corpus();
    let told = |arguments: &[&str]| {
        let output = output(arguments);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = told(&["train", "--python", "no-such-python"]);
    assert!(code == Some(1) && said.contains("no-such-python"), "{said}");
    let (code, said) = told(&["gpu", "--data", text(&file), "--device", "cuda:15"]);
    assert!(code == Some(1) && said.contains("cuda:15 cannot be used here"), "{said}");
    let (code, said) = told(&["generate", "--device", "cuda:15", "--without-torch"]);
    assert!(code == Some(1) && said.contains("cuda:15 cannot be used here"), "{said}");
    let (code, said) = told(&["gpu", "--include", "**/*.rs"]);
    assert!(code == Some(2) && said.contains("--data"), "{said}");
    let (code, said) = told(&["gpu", "--steps", "15"]);
    assert!(code == Some(2) && said.contains("multiple of 10"), "{said}");
}

#[test]
fn the_bench_for_gpus_runs_from_weights_to_tables() {
    // On the CPU, which has no kernels; of PyTorch's lines there are as many as there is PyTorch.
    let file = corpus();
    let data = ["--data", text(&file), "--device", "cpu", "--shapes", "tiny", "--output", "json"];
    let short = ["--steps", "10", "--warm-up", "1", "--repeats", "1", "--without-torch"];
    let report = json(
        &[
            &["gpu"],
            &data[..],
            &short,
            &["--parity-steps", "2", "--resume-steps", "2"],
            &["--full-steps", "2", "--preset", "tiny"],
        ]
        .concat(),
    );
    let lines = report["shapes"][0]["lines"].as_array().unwrap();
    let line = |name: &str| lines.iter().find(|line| line["contender"] == name).unwrap();
    assert_eq!(lines.len(), 3);
    for name in ["operations", "autograd"] {
        assert!(line(name)["step_secs"].as_f64().unwrap() > 0.0, "{report}");
        assert!(line(name)["memory_bytes"].as_u64().unwrap() > 50 << 20, "{report}");
    }
    let why = line("kernels")["failure"].as_str().unwrap();
    assert!(why.contains("no kernels"), "{why}");
    assert_eq!(report["parity"]["steps"], 2, "{report}");
    assert_eq!(
        (&report["resume"]["again_is_same"], &report["resume"]["resumed_is_same"]),
        (&true.into(), &true.into())
    );
    assert_eq!(report["full"]["preset"], "tiny", "{report}");
    assert!(report["full"]["first_loss"].as_f64().unwrap() > 5.0, "{report}");
    let answers = report["answers"]["f32"].as_array().unwrap();
    assert!(
        answers.len() > 1 && answers.iter().all(|pace| pace["secs_per_step"].as_f64().unwrap() > 0.0),
        "{report}"
    );
}
