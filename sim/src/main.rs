//! Runs seeds, two at a time, and says which fail.

use std::{
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use clap::Parser;
use hatchery_sim::{Outcome, run_many};

#[derive(Parser)]
#[command(name = "hatchery-sim", about = "The fleet in a simulation", version)]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them; a single seed prints its trace
    #[arg(long)]
    seed: Option<u64>,
    /// How many run at the same time
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Show the house's own log, such as `debug` or `hatchery_agent=trace`
    #[arg(long)]
    log: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(filter) = &arguments.log {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let first = arguments.seed.unwrap_or(0);
    let is_single = arguments.seeds == 1;
    let (failed, began) = (Mutex::new(Vec::new()), Instant::now());
    run_many(first..first.saturating_add(arguments.seeds), arguments.threads, |outcome| {
        if is_single {
            outcome.trace.iter().for_each(|line| println!("{line}"));
            println!("{:.1} s simulated, digest of the trace {}", outcome.simulated_secs, outcome.digest);
        }
        if !outcome.problems.is_empty() {
            show(&outcome);
            failed.lock().unwrap_or_else(PoisonError::into_inner).push(outcome.seed);
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{} of {} seeds from {first} fail, in {:.1} s",
        failed.len(),
        arguments.seeds,
        began.elapsed().as_secs_f64()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(outcome: &Outcome) {
    println!(
        "seed {} fails; `cargo xtask sim --seed {} --seeds 1` shows its trace",
        outcome.seed, outcome.seed
    );
    outcome.problems.iter().for_each(|problem| println!("  {problem}"));
}
