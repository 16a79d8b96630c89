//! `cargo xtask bench`: measurements beside others, on this machine, from an optimised build.

use anyhow::Result;
use clap::Subcommand;

use crate::cargo;
use crate::setup;

/// What is measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Training on the CPU, beside the plain path and eager PyTorch (`hatchery-trainer bench train`)
    #[command(disable_help_flag = true)]
    Train {
        /// Handed on, such as `--shape tiny --python python3`; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Answers on one core, beside eager PyTorch (`hatchery-trainer bench generate`)
    #[command(disable_help_flag = true)]
    Generate {
        /// Handed on, such as `--checkpoint DIR --python python3`; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Builds what is measured, and measures it.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let (what, arguments) = match bench {
        Bench::Train { arguments } => ("train", arguments),
        Bench::Generate { arguments } => ("generate", arguments),
    };
    setup::run(&setup::Options::default())?;
    let mut command =
        vec!["run", "--quiet", "--release", "--package", "hatchery-trainer", "--", "bench", what];
    command.extend(arguments.iter().map(String::as_str));
    cargo::run(&command)
}
