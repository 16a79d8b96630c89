//! `cargo xtask bench scheduler`: the quality and the speed of plans, measured.
//!
//! The real scheduler, driven through `decide`, `plan` and `Cluster::evolve` in a simulated time, stands
//! beside simple contenders and beside the optimum.

mod cases;
mod chart;
mod comparison;
mod contenders;
mod optimum;
mod report;
mod simulation;
mod speed;
mod world;

use std::{
    io::{IsTerminal as _, Write as _, stderr, stdout},
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::Result;
use cases::{CaseName, Family};
use chart::Chart;
use clap::{Parser, ValueEnum};
use comparison::{Measure, Outcome, compare};
use contenders::{Schedule, fifo, greedy};
use hatchery_scheduler::limits::{JOBS_WAITING_MAX, NODES_MAX};
use optimum::optimum;
use report::Report;
use serde::Serialize;
use simulation::simulate;

/// Measure the scheduler's plans: how good they are, and how long they take
///
/// Quality: random fleets and queues, each run to its end by the real scheduler (hatchery), by FIFO (in order
/// of submission, each job to the first free suitable device), by greedy (each to the fastest free suitable
/// device) and, where it can be computed, by one who knows every duration and every job to come (the
/// optimum). A family's name says what its cases are: `triple` is one CUDA card, one Apple GPU and one
/// processor at 27.8, 3.09 and 0.3 steps/s, `triple-x2` two of each, `random` 2 to 5 devices over three
/// decades of speed, `large` 6 to 12 with 20 to 60 jobs; `+wishes` for kinds of device, `+arrivals` over time
/// instead of all at once, `+surprises` where devices are up to twice as fast or slow as calibrated. An
/// attempt that is told to stop goes on elsewhere without a step or a second lost; the optimum stops none.
///
/// Speed: one plan of a long queue on a large fleet.
#[derive(Parser)]
#[command(
    name = "cargo xtask bench scheduler",
    bin_name = "cargo xtask bench scheduler",
    max_term_width = 120
)]
struct Arguments {
    /// Cases in each family; a fifth of them for `large`.
    #[arg(long, value_name = "N", default_value_t = 200)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100_000))]
    cases: u64,
    /// Number of the first case in each family; a different number gives different cases.
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
    /// Run one case and show all its schedules, such as `triple+wishes/17`.
    #[arg(long, value_name = "FAMILY/NUMBER")]
    seed: Option<CaseName>,
    /// Measure only one aspect.
    #[arg(long, value_enum, conflicts_with = "seed")]
    only: Option<Part>,
    /// Jobs in the queue when measuring speed.
    #[arg(long, value_name = "N", default_value_t = JOBS_WAITING_MAX)]
    #[arg(value_parser = number_up_to::<100, JOBS_WAITING_MAX>)]
    jobs: usize,
    /// Devices in the fleet when measuring speed.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = number_up_to::<10, NODES_MAX>)]
    devices: usize,
    /// Plans timed of each kind.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = number_up_to::<1, 50>)]
    repeats: usize,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Quality of the plans.
    Quality,
    /// Time per plan.
    Speed,
}

/// Output format.
#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Text for people.
    #[default]
    Text,
    /// JSON for programs, one value per line.
    Json,
}

fn number_up_to<const MIN: usize, const MAX: usize>(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (MIN..=MAX).contains(number));
    number.ok_or_else(|| format!("must be a number from {MIN} to {MAX}"))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(name) = arguments.seed {
        return look_at(name, arguments.output);
    }
    let wants = |part| arguments.only.is_none_or(|only| only == part);
    let outcomes =
        if wants(Part::Quality) { outcomes(arguments.first, arguments.cases)? } else { Vec::new() };
    let speed = if wants(Part::Speed) {
        speed::measure(arguments.jobs, arguments.devices, arguments.repeats)?
    } else {
        Vec::new()
    };
    print(&Report { quality: compare(&outcomes), speed }, arguments.output)
}

fn print(result: &(impl std::fmt::Display + Serialize), output: Output) -> Result<()> {
    let text = match output {
        Output::Text => result.to_string(),
        Output::Json => serde_json::to_string(result)? + "\n",
    };
    Ok(stdout().write_all(text.as_bytes())?)
}

fn look_at(name: CaseName, output: Output) -> Result<()> {
    let case = name.family.case(name.number);
    let best = optimum(&case);
    let mut schedules =
        vec![("hatchery", simulate(&case)?), ("greedy", greedy(&case)), ("fifo", fifo(&case))];
    schedules.extend(best.completion.map(|schedule| ("optimum of the mean completion", schedule)));
    schedules.extend(best.makespan.map(|schedule| ("optimum of the last end", schedule)));
    print(&Chart { case: &case, schedules }, output)
}

/// Runs so many cases of each family, on all cores.
fn outcomes(first: u64, cases: u64) -> Result<Vec<Outcome>> {
    let names: Vec<CaseName> = Family::all()
        .into_iter()
        .flat_map(|family| {
            let numbers = first..first + family.shape.cases(cases);
            numbers.map(move |number| CaseName { family, number })
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut found = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(index) else { return Ok(found) };
            found.push((index, outcome(*name)?));
            tell_progress(index + 1, names.len());
        }
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let found: Vec<Result<Vec<(usize, Outcome)>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker does not panic")).collect()
    });
    let mut found: Vec<(usize, Outcome)> =
        found.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    found.sort_unstable_by_key(|(index, _)| *index);
    Ok(found.into_iter().map(|(_, outcome)| outcome).collect())
}

fn outcome(name: CaseName) -> Result<Outcome> {
    let case = name.family.case(name.number);
    let best = optimum(&case);
    let measures = |schedule: Schedule| schedule.measures(&case);
    let contenders = [simulate(&case)?, greedy(&case), fifo(&case)].map(measures);
    let [least_mean, makespan] = [best.completion, best.makespan].map(|best| best.map(measures));
    let least_ms = [
        least_mean.map(|measures| Measure::Completion.of(measures)),
        makespan.map(|measures| Measure::Makespan.of(measures)),
    ];
    Ok(Outcome { name, contenders, least_mean, least_ms })
}

fn tell_progress(done: usize, all: usize) {
    const EVERY: usize = 50;
    if stderr().is_terminal() && (done.is_multiple_of(EVERY) || done == all) {
        let end = if done == all { "\n" } else { "" };
        // Nothing is lost with a line of progress.
        let _ = write!(stderr(), "\r{done} of {all} cases{end}");
    }
}
