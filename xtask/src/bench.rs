//! `cargo xtask bench`: measurements beside others, on this machine, from an optimised build.

#[cfg(target_os = "linux")]
mod fanout;

use anyhow::{Context, Result, ensure};
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
    /// Training on a GPU beside PyTorch, the whole reference run, its answers, exact resume (`hatchery-trainer bench gpu`)
    #[command(disable_help_flag = true)]
    Gpu {
        /// Handed on, such as `--data notes/ --python python3`; `--help` lists them
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
    /// A checkpoint's way to all nodes: how near to the floor it comes, on shaped links beside others, or simulated
    #[command(disable_help_flag = true)]
    Fanout {
        /// Such as `--quick`, or `--simulate --large`; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The scheduler's plans: how good they are beside FIFO, greedy and the optimum, and how long they take
    #[command(disable_help_flag = true)]
    Scheduler {
        /// Handed on, such as `--seed triple/17`; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// A fleet that loses its coordinator and finds it again, all agents at once
    Reconnect {
        /// How many agents
        #[arg(long, default_value_t = 1000)]
        agents: usize,
        /// For how many seconds the coordinator is gone
        #[arg(long, default_value_t = 0)]
        gone_secs: u64,
    },
}

/// Builds what is measured, and measures it.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let (program, arguments): (&[&str], _) = match bench {
        Bench::Reconnect { agents, gone_secs } => return reconnect(*agents, *gone_secs),
        Bench::Train { arguments } => (&["hatchery-trainer", "--", "bench", "train"], arguments),
        Bench::Gpu { arguments } => (&["hatchery-trainer", "--", "bench", "gpu"], arguments),
        Bench::Generate { arguments } => (&["hatchery-trainer", "--", "bench", "generate"], arguments),
        Bench::Fanout { arguments } if !arguments.iter().any(|argument| argument == "--simulate") => {
            return fanout(arguments);
        }
        Bench::Fanout { arguments } => (&["hatchery-swarm", "--example", "fanout", "--"], arguments),
        Bench::Scheduler { arguments } => (&["hatchery-scheduler", "--example", "bench", "--"], arguments),
    };
    if !matches!(bench, Bench::Scheduler { .. } | Bench::Fanout { .. }) {
        setup::run(&setup::Options::default())?;
    }
    let mut command = vec!["run", "--quiet", "--release", "--package"];
    command.extend(program);
    command.extend(arguments.iter().map(String::as_str));
    cargo::run(&command)
}

/// Over the links of this machine's kernel.
#[cfg(target_os = "linux")]
fn fanout(arguments: &[String]) -> Result<()> {
    let name = "cargo xtask bench fanout".to_owned();
    fanout::run(clap::Parser::parse_from(std::iter::once(&name).chain(arguments)))
}

/// There are no such links.
#[cfg(not(target_os = "linux"))]
fn fanout(_arguments: &[String]) -> Result<()> {
    anyhow::bail!(
        "links are shaped by Linux's kernel: here there is `cargo xtask bench fanout --simulate` alone"
    )
}

/// It is a test, of more agents than there are otherwise.
fn reconnect(agents: usize, gone_secs: u64) -> Result<()> {
    let arguments = [
        "test",
        "--quiet",
        "--release",
        "--package",
        "hatchery-cli",
        "--test",
        "reconnect",
        "--",
        "--nocapture",
    ];
    let mut command = cargo::command(&arguments);
    command.env("RECONNECT_AGENTS", agents.to_string()).env("RECONNECT_GONE_SECS", gone_secs.to_string());
    let status = command.status();
    ensure!(status.context("cannot start cargo")?.success(), "not all agents were back in time");
    Ok(())
}
