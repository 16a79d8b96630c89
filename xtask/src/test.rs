//! `cargo xtask test`: everything that the tests need, then the tests.

use std::process::Output;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::fuzz;
use crate::kernels;
use crate::phases::Phases;
use crate::room;
use crate::setup;

/// Every package, with the fault points that tests arm.
const TESTS: [&str; 4] = ["test", "--workspace", "--features", "hatchery-tests/failpoints"];
/// The one test that takes minutes, most of them waiting: it runs beside the others.
const CHAOS: &str = "three_minutes_of_chaos_break_nothing";

/// Flags of `test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave toolchain and libtorch unchecked
    #[arg(long)]
    no_setup: bool,
    /// Handed on to `cargo test`, such as a test's name
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs every test of the workspace. The tests that start real processes find the two binaries built.
pub(crate) fn run(options: &Options) -> Result<()> {
    room::check()?;
    let mut phases = Phases::default();
    if !options.no_setup {
        phases.run("setup", || setup::run(&setup::Options::default()))?;
    }
    // One build for everything: it makes the binaries too, because each has integration tests of its own.
    phases.run("build", || cargo::run(&[&TESTS[..], &["--no-run"]].concat()))?;
    if options.arguments.is_empty() {
        // As the tests' build made it: a build for itself would have other features.
        phases.run("compile the kernels", || {
            let build = [&TESTS[..], &["--no-run", "--message-format=json-render-diagnostics"]].concat();
            let trainer = cargo::build_with(cargo::command(&build), "hatchery-trainer")?;
            kernels::compile_where_possible(&trainer)
        })?;
    }
    let outcome = phases.run("run the tests", || {
        if options.arguments.is_empty() {
            return run_all();
        }
        let arguments: Vec<&str> = options.arguments.iter().map(String::as_str).collect();
        cargo::run(&[&TESTS[..], &["--"], &arguments].concat())
    });
    phases.print();
    outcome
}

fn run_all() -> Result<()> {
    let chaos = thread::spawn(|| {
        let arguments = [&TESTS[..], &["--test", "chaos", "--", "--exact", CHAOS, "--nocapture"]].concat();
        cargo::command(&arguments).output().context("cannot start cargo")
    });
    let fuzzers = thread::spawn(fuzz::minute);
    let others = cargo::run(&[&TESTS[..], &["--", "--skip", CHAOS]].concat());
    eprintln!("the other tests are done; waiting for {CHAOS}");
    let Ok(chaos) = chaos.join() else { bail!("cannot wait for {CHAOS}") };
    let chaos = judge(&chaos?);
    let fuzzers = fuzzers.join().unwrap_or_else(|_| bail!("cannot wait for the fuzzers"));
    // All of them are worth to be told.
    let failed = [others, chaos, fuzzers.context("the fuzzers")].into_iter().filter_map(Result::err);
    let failed: Vec<String> = failed.map(|error| format!("{error:#}")).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

/// Shows what came of chaos, all of it where it failed.
fn judge(output: &Output) -> Result<()> {
    let report = String::from_utf8_lossy(&output.stdout);
    println!("{report}");
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        bail!("{CHAOS} failed");
    }
    Ok(())
}
