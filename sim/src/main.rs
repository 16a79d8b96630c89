//! Runs seeds and says which fail.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Parser;
use hatchery_common::faults;
use hatchery_sim::{Outcome, Runs, SEEDS_AT_ONCE, run};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "hatchery-sim", about = "The fleet in a simulation", version)]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them; with `--seeds 1` its trace is printed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many run at the same time
    #[arg(long, default_value_t = SEEDS_AT_ONCE)]
    at_once: usize,
    /// Write each trace into this folder, as `SEED.txt`
    #[arg(long, value_name = "FOLDER")]
    traces: Option<PathBuf>,
    /// Run this seed in this very process and print its outcome as JSON; Hatchery's own log goes to stderr, as
    /// `RUST_LOG` says
    #[arg(long, value_name = "SEED", exclusive = true)]
    one: Option<u64>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    match arguments.one {
        Some(seed) => run_one(seed),
        None => run_many(&arguments),
    }
}

fn run_one(seed: u64) -> Result<ExitCode> {
    if env::var_os(EnvFilter::DEFAULT_ENV).is_some() {
        let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env());
        log.with_writer(std::io::stderr).init();
    }
    faults::arm_from_environment();
    serde_json::to_writer(std::io::stdout().lock(), &run(seed))?;
    Ok(ExitCode::SUCCESS)
}

fn run_many(arguments: &Arguments) -> Result<ExitCode> {
    let runs = Runs::by(env::current_exe().context("cannot find this program's own file")?);
    let is_single = arguments.seeds == 1;
    let (failed, began) = (Mutex::new(Vec::new()), Instant::now());
    let seeds = arguments.seed..arguments.seed.saturating_add(arguments.seeds);
    runs.run_many(seeds, arguments.at_once, |outcome| {
        if is_single {
            outcome.trace.iter().for_each(|line| println!("{line}"));
            println!("{:.1} s simulated, digest of the trace {}", outcome.simulated_secs, outcome.digest);
        }
        if let Some(folder) = &arguments.traces
            && let Err(error) = keep_trace(folder, &outcome)
        {
            eprintln!("{error:#}");
        }
        if !outcome.problems.is_empty() {
            let seed = outcome.seed;
            println!("seed {seed} fails; `cargo xtask sim --seeds 1 --seed {seed}` shows its trace");
            outcome.problems.iter().for_each(|problem| println!("  {problem}"));
            failed.lock().unwrap_or_else(PoisonError::into_inner).push(seed);
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (count, seconds) = (arguments.seeds, began.elapsed().as_secs_f64());
    println!("{} of {count} seeds from {} fail, in {seconds:.1} s", failed.len(), arguments.seed);
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn keep_trace(folder: &Path, outcome: &Outcome) -> Result<()> {
    let path = folder.join(format!("{}.txt", outcome.seed));
    std::fs::write(&path, outcome.trace.join("\n"))
        .with_context(|| format!("cannot write {}", path.display()))
}
