//! `hatchery`: the one command that people type.

mod args;
mod commands;
mod exit;
mod home;
mod human;
mod output;

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
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::failed(format!("cannot start threads: {error}")).report(),
    };
    let outcome = runtime.block_on(async {
        let home = Home::new(cli.home, cli.coordinator)?;
        commands::run(cli.command, &home, cli.output).await
    });
    // A thread that still reads a terminal or hashes a file must not hold up the exit.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
