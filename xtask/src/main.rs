//! What a person types in a clone of the repository: `cargo xtask setup | test | dist | demo`.

mod progress;
mod repo;
mod setup;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The chores of a Hatchery clone", version)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Check the toolchain and fetch the parts of libtorch that the trainer needs
    Setup(setup::Options),
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Setup(options) => setup::run(&options),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", console::style("error:").red().bold());
            std::process::ExitCode::FAILURE
        }
    }
}
