//! `cargo xtask fuzz`: libFuzzer on the parsers of what comes from outside. It needs no nightly toolchain and no libtorch.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use hatchery_test_support::{GLANCE, Interrupt};

use crate::{cargo, repo};

const PACKAGE: &str = "hatchery-fuzz";
/// All targets; `fuzz/src/lib.rs` says what they are.
const TARGETS: [&str; 12] = [
    "piece-manifest",
    "piece-set",
    "from-agent",
    "from-coordinator",
    "peer-ask",
    "squeezed-piece",
    "checkpoint-manifest",
    "dataset-manifest",
    "job-spec",
    "checkpoint-folder",
    "import",
    "join-string",
];
/// The same packages and features as the tests', so that nothing of others is built anew for the fuzzer.
const BUILD: [&str; 5] =
    ["--workspace", "--bin", PACKAGE, "--features", "hatchery-tests/failpoints,hatchery-fuzz/libfuzzer"];
/// Longest input.
const INPUT_BYTES_MAX: &str = "-max_len=65536";
/// More memory than this is a fault of the parser.
const MEMORY_MB_MAX: &str = "-rss_limit_mb=1024";
/// So is an input that takes so many seconds.
const INPUT_SECS_MAX: &str = "-timeout=20";
/// So much of a log is shown of a target that has found something.
const LOG_LINES_SHOWN: usize = 30;

/// Flags of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long each target is fuzzed
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
    /// Only these: piece-manifest, piece-set, from-agent, from-coordinator, checkpoint-manifest, dataset-manifest, job-spec,
    /// checkpoint-folder, import, join-string
    #[arg(value_parser = TARGETS)]
    targets: Vec<String>,
}

/// Fuzzes, and fails if anything is found.
pub(crate) fn run(options: &Options) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let wanted =
        |name: &&str| options.targets.is_empty() || options.targets.iter().any(|target| target == name);
    let targets: Vec<&'static str> = TARGETS.into_iter().filter(wanted).collect();
    fuzz(&build()?, &targets, options.minutes * 60, &interrupt)
}

/// Builds the fuzzer, with coverage of Hatchery's own crates, and says where it is.
fn build() -> Result<PathBuf> {
    let mut command =
        cargo::command(&[&["build", "--message-format=json-render-diagnostics"], &BUILD[..]].concat());
    command.env("RUSTC_WORKSPACE_WRAPPER", repo::root().join("fuzz/coverage.sh"));
    cargo::build_with(command, PACKAGE)
}

/// One target at work. It ends with this.
struct Running {
    target: &'static str,
    child: Child,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended cannot be killed, and needs not to be.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// All targets side by side, below everything else that runs on this machine.
fn fuzz(fuzzer: &Path, targets: &[&'static str], secs: u64, interrupt: &Interrupt) -> Result<()> {
    // In memory, where there is such a folder: targets write files, and sync them.
    let in_memory = Path::new("/dev/shm");
    let scratch = if in_memory.is_dir() { tempfile::tempdir_in(in_memory) } else { tempfile::tempdir() };
    let scratch = scratch.context("cannot create a temporary folder")?;
    let mut running = Vec::new();
    for target in targets {
        running.push(start(fuzzer, target, secs, scratch.path())?);
    }
    eprintln!("{} targets for {secs} s each", running.len());
    while !running.iter_mut().all(|one| matches!(one.child.try_wait(), Ok(Some(_)) | Err(_))) {
        interrupt.check()?;
        std::thread::sleep(GLANCE * 4);
    }
    let mut found = Vec::new();
    for one in &mut running {
        let log = fs::read_to_string(&one.log).unwrap_or_default();
        let status = one.child.wait()?;
        println!("{}", summary(one.target, &log));
        if !status.success() {
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n"));
            found.push(one.target);
        }
    }
    ensure!(
        found.is_empty(),
        "{} failed; the input is in fuzz/found/, where the tests repeat it: commit it with the fix",
        found.join(", ")
    );
    Ok(())
}

fn start(fuzzer: &Path, target: &'static str, secs: u64, scratch: &Path) -> Result<Running> {
    // What was reached in earlier runs is where the next begins.
    let corpus = repo::root().join("target/fuzz-corpus").join(target);
    let found = repo::root().join("fuzz/found").join(target);
    let own = scratch.join(target);
    for folder in [&corpus, &found, &own] {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let log = scratch.join(format!("{target}.log"));
    let mut command = Command::new("nice");
    command.arg("-n19").arg(fuzzer);
    command.args([INPUT_BYTES_MAX, MEMORY_MB_MAX, INPUT_SECS_MAX, "-print_final_stats=1"]);
    command.arg(format!("-max_total_time={secs}")).arg(format!("-artifact_prefix={}/", found.display()));
    command.arg(&corpus).arg(&found);
    command.env("HATCHERY_FUZZ_TARGET", target).env("HATCHERY_FUZZ_SEEDS", &corpus).env("TMPDIR", &own);
    let file = File::create(&log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let child = command.spawn().context("cannot start the fuzzer")?;
    Ok(Running { target, child, log })
}

/// How much was tried, and how much of the program it reached: `join-string  1234567 inputs, 890 edges`.
fn summary(target: &str, log: &str) -> String {
    let inputs = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let edges = log.lines().rev().find_map(|line| line.split(" cov: ").nth(1)?.split(' ').next());
    format!("{target:<20}  {:>12} inputs  {:>6} edges", inputs.map_or("?", str::trim), edges.unwrap_or("?"))
}

/// A minute of each target, for the tests.
pub(crate) fn minute() -> Result<()> {
    fuzz(&build()?, &TARGETS, 60, &Interrupt::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_how_far_it_came() {
        let log = "#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0\n#900\tNEW    cov: 42 ft: 50 corp: 2/2b lim: 4\n\
                   stat::number_of_executed_units: 123456\nstat::peak_rss_mb: 40\n";
        assert_eq!(summary("join-string", log), "join-string                 123456 inputs      42 edges");
        assert_eq!(summary("x", ""), "x                                ? inputs       ? edges");
    }

    #[test]
    fn the_targets_are_those_of_the_fuzzer() {
        let source = fs::read_to_string(repo::root().join("fuzz/src/lib.rs")).unwrap();
        let named: Vec<&str> = source
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Target { name: \"")?.split('"').next())
            .collect();
        assert_eq!(named, TARGETS);
    }
}
