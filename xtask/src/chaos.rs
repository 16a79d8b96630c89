//! `cargo xtask chaos`: the fleet is hurt for as long as you like. It needs no libtorch.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo;
use crate::phases::Phases;

/// What has to be built: Hatchery with its fault points, the trainer that trains nothing, and the runner.
const BUILD: [&str; 11] = [
    "--package",
    "hatchery-cli",
    "--package",
    "hatchery-agent",
    "--package",
    "hatchery-tests",
    "--bins",
    "--example",
    "fake-trainer",
    "--features",
    "hatchery-tests/failpoints",
];

/// Flags of `chaos`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long faults are injected; then the fleet has up to two and a half minutes to settle
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Random seed; the same seed injects the same faults in the same order [default: random, and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Only faults with this word in their names, such as `killed` or `cut off`
    #[arg(long, requires = "seed")]
    only: Option<String>,
}

/// Builds what it takes, and runs it; fails if anything is found that must not be.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut phases = Phases::default();
    let runner = phases.run("build", || cargo::build(&BUILD, "hatchery-chaos"))?;
    let outcome = phases.run("chaos", || {
        let mut command = Command::new(&runner);
        command.arg((options.minutes * 60).to_string());
        command.args(options.seed.map(|seed| seed.to_string()));
        command.args(&options.only);
        let status = command.status().with_context(|| format!("cannot start {}", runner.display()))?;
        if !status.success() {
            bail!("a guarantee was broken; the same seed repeats the same faults");
        }
        Ok(())
    });
    phases.print();
    outcome
}
