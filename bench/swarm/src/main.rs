//! `cargo xtask bench fanout --simulate`: how near to the floor the fan-out comes, on simulated links.

use std::io::{Write as _, stdout};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use hatchery_bench_swarm::{
    cases::{Case, LARGE_BYTES, SMALL_BYTES},
    report::{Report, Row},
    upkeep,
};

/// Most receivers of a large fleet.
const RECEIVERS_MAX: u64 = 20_000;

/// Simulate a blob's way from one node to all others, and compare it with the floor
///
/// The floor is the most of F/u_source, F/min(down) and N F/(u_source + sum(u)), where F is the blob and u are the
/// uplinks; no plan can be faster. Links of which nothing else is said carry 60 Mbit/s each way and are shared max-min
/// fairly; a message takes 1 ms. Each number is the worst of all seeds. The others: everybody asks the source (star),
/// or the one before (chain), or asks Hatchery's parents for any piece (random).
///
/// With `--large` fleets of 1,000 and 10,000 receivers follow, whose flows get the smaller of their equal shares at both
/// ends (which makes links look worse than they are), and what the tracker costs by itself. This takes some minutes.
#[derive(Parser)]
#[command(name = "cargo xtask bench fanout", bin_name = "cargo xtask bench fanout", max_term_width = 120)]
struct Arguments {
    /// By simulation; without it `cargo xtask bench fanout` measures on real links.
    #[arg(long, required = true)]
    simulate: bool,
    /// Runs of each case, with other seeds.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Only the cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Large fleets too, and what the tracker costs.
    #[arg(long)]
    large: bool,
    /// Receivers of the large fleets.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1000, 10_000])]
    #[arg(value_parser = clap::value_parser!(u64).range(10..=RECEIVERS_MAX))]
    receivers: Vec<u64>,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
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

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let is_wanted =
        |case: &Case| arguments.only.as_ref().is_none_or(|text| case.name.contains(text.as_str()));
    let mut report = Report::default();
    for case in Case::all().iter().filter(|case| is_wanted(case)) {
        report.cases.push(Row::of(case, arguments.seeds, true));
    }
    if arguments.large {
        for &count in &arguments.receivers {
            // First, since what else was in memory before would hide what this takes.
            report.upkeep.push(upkeep::measure(count as usize)?);
        }
        for &count in &arguments.receivers {
            for size_bytes in [SMALL_BYTES, LARGE_BYTES] {
                report.cases.push(Row::of(&Case::equal(count as usize, size_bytes), 1, false));
            }
        }
    }
    let text = match arguments.output {
        Output::Text => report.to_string(),
        Output::Json => serde_json::to_string(&report)? + "\n",
    };
    Ok(stdout().write_all(text.as_bytes())?)
}
