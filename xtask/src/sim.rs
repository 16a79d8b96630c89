//! `cargo xtask sim`: the fleet in a simulation, from as many seeds as one likes.

use anyhow::Result;

use crate::cargo;

/// Flags of `sim`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many seeds to run
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them; with `--seeds 1` its trace is printed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Handed on, such as `--log debug`
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds the simulator and runs it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (seeds, seed) = (options.seeds.to_string(), options.seed.to_string());
    let mut arguments =
        vec!["run", "--quiet", "--package", "hatchery-sim", "--", "--seeds", &seeds, "--seed", &seed];
    arguments.extend(options.arguments.iter().map(String::as_str));
    cargo::run(&arguments)
}
