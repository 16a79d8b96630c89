//! `cargo xtask test`: everything that the tests need, then the tests.

use anyhow::Result;

use crate::cargo;
use crate::phases::Phases;
use crate::setup;

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
    let mut phases = Phases::default();
    if !options.no_setup {
        phases.run("setup", || setup::run(&setup::Options::default()))?;
    }
    // One build for everything: it makes the binaries too, because each has integration tests of its own.
    let tests = ["test", "--workspace", "--features", "hatchery-common/failpoints"];
    phases.run("build", || cargo::run(&[&tests[..], &["--no-run"]].concat()))?;
    let mut arguments = tests.to_vec();
    arguments.push("--");
    arguments.extend(options.arguments.iter().map(String::as_str));
    let outcome = phases.run("run the tests", || cargo::run(&arguments));
    phases.print();
    outcome
}
