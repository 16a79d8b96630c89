//! `cargo xtask bench`: measurements beside others, on this machine, from an optimised build. They are programs of their
//! own, in `bench/`.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::{cargo, setup};

/// What is measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Training on the CPU, beside the plain path and eager PyTorch
    #[command(disable_help_flag = true)]
    Train(Arguments),
    /// Training on a GPU beside PyTorch, the whole reference run, its answers, exact resume
    #[command(disable_help_flag = true)]
    Gpu(Arguments),
    /// Answers on one core, beside eager PyTorch
    #[command(disable_help_flag = true)]
    Generate(Arguments),
    /// The engine alone: a prompt, then new bytes one by one, on one core
    #[command(disable_help_flag = true)]
    Engine(Arguments),
    /// A checkpoint's way to all nodes: how near to the floor it comes, on shaped links beside others, or simulated
    #[command(disable_help_flag = true)]
    Fanout(Arguments),
    /// The scheduler's plans: how good they are beside FIFO, greedy and the optimum, and how long they take
    #[command(disable_help_flag = true)]
    Scheduler(Arguments),
    /// A fleet that loses its coordinator and finds it again, all agents at once
    #[command(disable_help_flag = true)]
    Reconnect(Arguments),
}

/// What is handed on.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Handed on to the benchmark; `--help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Arguments {
    fn has(&self, flag: &str) -> bool {
        self.arguments.iter().any(|argument| argument == flag)
    }
}

/// Builds what is measured, and becomes the program that measures it, so that Ctrl-C reaches that one alone.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let (package, subcommand, arguments) = match bench {
        Bench::Train(arguments) => ("hatchery-bench-trainer", Some("train"), arguments),
        Bench::Gpu(arguments) => ("hatchery-bench-trainer", Some("gpu"), arguments),
        Bench::Generate(arguments) => ("hatchery-bench-trainer", Some("generate"), arguments),
        Bench::Engine(arguments) => ("hatchery-bench-engine", None, arguments),
        Bench::Fanout(arguments) if arguments.has("--simulate") => ("hatchery-bench-swarm", None, arguments),
        Bench::Fanout(arguments) => ("hatchery-bench-fanout", None, arguments),
        Bench::Scheduler(arguments) => ("hatchery-bench-scheduler", None, arguments),
        Bench::Reconnect(arguments) => ("hatchery-bench-reconnect", None, arguments),
    };
    // What a benchmark starts lies beside it.
    let beside: &[&str] = match bench {
        Bench::Fanout(arguments) if arguments.has("--scenarios") => &["hatchery-cli", "hatchery-trainer"],
        Bench::Fanout(arguments) if !arguments.has("--simulate") => &["hatchery-cli"],
        _ => &[],
    };
    if package == "hatchery-bench-trainer" || beside.contains(&"hatchery-trainer") {
        setup::run(&setup::Options::default())?;
    }
    let packages = [&[package], beside].concat();
    let build: Vec<&str> = packages.iter().flat_map(|package| ["--package", package]).collect();
    let program = cargo::build(&[&["--release", "--quiet", "--bins"], &build[..]].concat(), package)?;
    let mut command = Command::new(&program);
    command.args(subcommand).args(&arguments.arguments);
    Err(command.exec()).with_context(|| format!("cannot start {}", program.display()))
}
