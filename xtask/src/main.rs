//! What a person types in a clone of the repository:
//! `cargo xtask setup | test | kernels | chaos | fuzz | sim | demo | install | dist | docs | bench`.

mod bench;
mod cargo;
mod chaos;
mod demo;
mod dist;
mod docs;
mod fuzz;
mod install;
mod kernels;
mod phases;
mod progress;
mod release;
mod repo;
mod room;
mod setup;
mod sim;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Development tasks of Hatchery", version)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Check the toolchain and fetch libtorch for the trainer
    Setup(setup::Options),
    /// Run all tests, after setup
    Test(test::Options),
    /// Inject faults into a fleet of real processes under load, and check its guarantees
    Chaos(chaos::Options),
    /// Fuzz the parsers of external input
    Fuzz(fuzz::Options),
    /// Simulate the fleet, with many seeds
    Sim(sim::Options),
    /// Show the whole workflow live on this machine
    Demo(demo::Options),
    /// Compile the trainer's kernels for NVIDIA GPUs of compute capability 8.0 or newer; needs no GPU
    Kernels,
    /// Build a release archive and test it in an empty folder
    Dist(dist::Options),
    /// Regenerate the reference pages from the code
    Docs,
    /// Install `hatchery`, its trainer, manual and completions for this user
    Install(install::Options),
    /// Remove the files of `install`
    Uninstall(install::Options),
    /// Benchmark against alternatives
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().chore {
        Chore::Setup(options) => setup::run(&options),
        Chore::Test(options) => test::run(&options),
        Chore::Chaos(options) => chaos::run(&options),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Sim(options) => sim::run(&options),
        Chore::Demo(options) => demo::run(&options),
        Chore::Kernels => kernels::run(),
        Chore::Dist(options) => dist::run(&options),
        Chore::Docs => docs::run(),
        Chore::Install(options) => install::install(&options),
        Chore::Uninstall(options) => install::uninstall(&options),
        Chore::Bench(bench) => bench::run(&bench),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", console::style("error:").red().bold());
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::Arguments;

    #[test]
    fn every_cargo_xtask_line_of_the_pages_parses() {
        hatchery_docs::assert_commands_parse("cargo xtask", 30, |arguments| {
            let line = ["cargo xtask".to_owned()].into_iter().chain(arguments);
            match Arguments::command().try_get_matches_from(line) {
                Err(error) if error.kind() != ErrorKind::DisplayHelp => Err(error),
                _ => Ok(()),
            }
        });
    }
}
