//! `hatchery`: the one command that people type.

mod args;
mod commands;
mod exit;
mod home;
mod human;
mod output;
#[cfg(test)]
mod pages;

use std::process::ExitCode;

use clap::Parser;

use crate::{args::Cli, exit::Failure, home::Home};

/// Pieces of blobs are allocated and freed by the megabyte: the system's allocator gives each back to the system, and
/// fetches it again page by page, which costs more than hashing and encrypting it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hatchery_common::faults::arm_from_environment();
    let cli = Cli::parse();
    hatchery_common::tls::install_provider();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(cli.command, args::Command::Agent(_)) {
        runtime.worker_threads(agent_threads());
    }
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("cannot start threads: {error}")).report(),
    };
    let outcome = runtime.block_on(async {
        let home = Home::new(cli.home, cli.coordinator)?;
        Box::pin(commands::run(cli.command, &home, cli.output)).await
    });
    // A thread that still reads a terminal or hashes a file must not hold up the exit.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Threads that serve an agent's connections; what computes or waits for a disk has others. With one for each processor
/// they would wake one another for every packet, which on a slow link is most of a transfer's processor time, and the
/// processors are the trainer's in the first place. One encrypts several Gbit/s.
fn agent_threads() -> usize {
    const PROCESSORS_PER_THREAD: usize = 4;
    const THREADS_MAX: usize = 4;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (processors / PROCESSORS_PER_THREAD).clamp(1, THREADS_MAX)
}
