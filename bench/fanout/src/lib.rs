//! `cargo xtask bench fanout`: a checkpoint's way from its source to all nodes, over links of a known speed.
//!
//! Nodes are network namespaces on a bridge of this machine, with a real process of the fleet in each. What is measured
//! stands beside the floor, below which no plan can be.

#![cfg(target_os = "linux")]

mod command;
mod contenders;
mod fleet;
mod floor;
mod links;
mod log;
mod network;
mod processor;
mod report;
mod scenarios;
mod training;
mod transfer;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use console::style;
use hatchery_test_support::Interrupt;

use contenders::{Aria2, Contender, Rsync};
use fleet::{Fleet, Programs, Wish};
use network::{Link, Network};
use report::{Report, Row};
use scenarios::Scenario;
use transfer::{Run, Terms, Undisturbed, measure};

/// A transfer is given up after so many floors of its kind, and no sooner than after so many seconds.
const GIVE_UP_FLOORS: f64 = 6.0;
const GIVE_UP_SECS_MIN: f64 = 60.0;
/// What is expected to take longer than this is repeated less often.
const LONG_SECS: f64 = 60.0;
const LONG_REPEATS: usize = 1;
/// All links together carry no more than this: beyond it the processor is what is measured.
const MBIT_IN_ALL_MAX: f64 = 1100.0;

/// Measure a checkpoint's way from one source to all nodes
///
/// The floor is the most of F/u_source, F/min(down) and N F/(u_source + sum(u)), where F is the file and u are the uplinks;
/// no plan can be faster. Nodes are network namespaces on a bridge, with HTB on each uplink and TBF on each downlink, and
/// run real agents; the source is a real coordinator. It takes root and Linux. Times run from the push to the moment at
/// which a node has every byte, verified. With --simulate Hatchery's fan-out runs on simulated links instead, without
/// root (`--simulate --help`).
#[derive(Parser)]
#[command(name = "cargo xtask bench fanout", bin_name = "cargo xtask bench fanout", max_term_width = 120)]
pub struct Options {
    /// Receivers
    #[arg(long, value_delimiter = ',', default_values_t = [4, 8, 16])]
    nodes: Vec<usize>,
    /// Sizes of the file in MB (10^6 bytes)
    #[arg(long, value_name = "MB", value_delimiter = ',', default_values_t = [13, 100])]
    sizes: Vec<u64>,
    /// Runs of each contender, in turn; only one if a run takes more than a minute
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Speed of an ordinary link in each direction
    #[arg(long, value_name = "MBIT", default_value_t = 60.0)]
    rate_mbit: f64,
    /// Only cases and scenarios whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Contenders to measure
    #[arg(long, value_enum, value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// Run failure and load scenarios instead of the cases above
    #[arg(long)]
    scenarios: bool,
    /// Run one small case
    #[arg(long, conflicts_with_all = ["nodes", "sizes", "repeats", "scenarios"])]
    quick: bool,
    /// A `hatchery` built with the feature failpoints, for the scenario of an agent that serves corrupt data
    #[arg(long, value_name = "PROGRAM")]
    flipping_agent: Option<PathBuf>,
    /// Output format
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

/// What every measurement needs.
struct Bench {
    options: Options,
    programs: Programs,
    interrupt: Interrupt,
    /// Payload bytes per second of an ordinary link.
    goodput: f64,
}

/// Measures, and prints what came of it.
pub fn run(mut options: Options) -> Result<()> {
    if options.quick {
        (options.nodes, options.sizes, options.repeats) = (vec![4], vec![13], 2);
    }
    ensure!(options.repeats > 0 && options.nodes.iter().all(|nodes| *nodes > 0), "nothing to measure");
    let nodes_max = options.nodes.iter().copied().max().unwrap_or_default();
    ensure!(
        (nodes_max + 1) as f64 * options.rate_mbit <= MBIT_IN_ALL_MAX,
        "{} links of {} Mbit/s are more than {MBIT_IN_ALL_MAX} Mbit/s: the processor would be measured",
        nodes_max + 1,
        options.rate_mbit
    );
    let interrupt = Interrupt::listen()?;
    let programs = Programs::find()?;
    let goodput = links::goodput(&Network::build(&[Link::mbit(options.rate_mbit); 2])?)?;
    let bench = Bench { options, programs, interrupt, goodput };
    let mut report =
        Report { rate_mbit: bench.options.rate_mbit, goodput_mbit: goodput * 8.0 / 1e6, ..Report::default() };
    let outcome =
        if bench.options.scenarios { bench.scenarios(&mut report) } else { bench.cases(&mut report) };
    // What was measured before an error is worth to be told.
    match bench.options.output {
        Output::Text => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string(&report)?),
    }
    outcome
}

impl Bench {
    /// Those that can be measured; the others are noted.
    fn contenders(&self, report: &mut Report) -> Vec<Contender> {
        let wanted =
            if self.options.contenders.is_empty() { &Contender::ALL[..] } else { &self.options.contenders };
        let mut able = Vec::new();
        for contender in wanted {
            match contender.lacks(&self.programs) {
                Some(why) => report.left_out.push(format!("{}: {why}", contender.name())),
                None => able.push(*contender),
            }
        }
        able
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.options.only.as_ref().is_none_or(|text| name.contains(text.as_str()))
    }

    fn cases(&self, report: &mut Report) -> Result<()> {
        let contenders = self.contenders(report);
        for &megabytes in &self.options.sizes {
            for &nodes in &self.options.nodes {
                let name = format!("N = {nodes}, {megabytes} MB");
                if self.is_wanted(&name) {
                    self.case(&name, nodes, megabytes, &contenders, report)?;
                }
            }
        }
        Ok(())
    }

    /// One case, all contenders in turn.
    fn case(
        &self,
        name: &str,
        nodes: usize,
        megabytes: u64,
        contenders: &[Contender],
        report: &mut Report,
    ) -> Result<()> {
        let links = vec![Link::mbit(self.options.rate_mbit); nodes + 1];
        let rates = links::rates(&links, self.options.rate_mbit, self.goodput);
        let floor_secs = floor::secs(megabytes as f64 * 1e6, rates[0], &rates[1..]);
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); contenders.len()];
        let network = Network::build(&links)?;
        let mut outcome = Ok(());
        'repeats: for repeat in 0..self.options.repeats {
            for (index, contender) in contenders.iter().enumerate() {
                let expected = if contender.is_star() { floor_secs * nodes as f64 } else { floor_secs };
                if expected > LONG_SECS && repeat >= LONG_REPEATS {
                    continue;
                }
                let run = self.once(&network, *contender, megabytes, repeat as u64 + 1, expected);
                match run.with_context(|| format!("{name}, {}", contender.name())) {
                    Ok(run) => {
                        let last = report::largest(&run.secs_of(|_| true));
                        say(&format!(
                            "{name}, {}: last after {last:.2} s, floor {floor_secs:.2} s",
                            contender.name()
                        ));
                        runs[index].push(run);
                    }
                    Err(error) => {
                        outcome = Err(error);
                        break 'repeats;
                    }
                }
            }
        }
        for (contender, runs) in contenders.iter().zip(&runs).filter(|(_, runs)| !runs.is_empty()) {
            report.cases.push(Row::of(name.to_owned(), contender.name(), floor_secs, runs));
        }
        outcome
    }

    /// One transfer. `expected_secs` is what it takes at the least.
    fn once(
        &self,
        network: &Network,
        contender: Contender,
        megabytes: u64,
        seed: u64,
        expected_secs: f64,
    ) -> Result<Run> {
        let nobody = BTreeSet::new();
        let secs_max = (expected_secs * GIVE_UP_FLOORS).max(GIVE_UP_SECS_MIN);
        let terms = Terms { secs_max, lost: &nobody, interrupt: &self.interrupt };
        match contender {
            Contender::Swarm | Contender::Star => {
                let peers = contender == Contender::Swarm;
                let wish = Wish { megabytes, seed, peers, late: &nobody, odd: None, trains: None };
                let fleet = Fleet::start(network, &self.programs, &self.interrupt, &wish)?;
                measure(&mut &fleet, network, &mut Undisturbed, &terms)
            }
            Contender::Rsync => {
                let mut rsync = Rsync::start(network, &self.interrupt, megabytes, seed)?;
                measure(&mut rsync, network, &mut Undisturbed, &terms)
            }
            Contender::Aria2 => {
                let mut aria2 = Aria2::start(network, &self.interrupt, megabytes, seed)?;
                measure(&mut aria2, network, &mut Undisturbed, &terms)
            }
        }
    }

    fn scenarios(&self, report: &mut Report) -> Result<()> {
        let megabytes = self.options.sizes.iter().copied().max().unwrap_or_default();
        let contenders = self.contenders(report);
        for scenario in Scenario::ALL.into_iter().filter(|scenario| self.is_wanted(scenario.name())) {
            for contender in &contenders {
                if let Some(why) = scenario.lacks(*contender, self.options.flipping_agent.as_deref()) {
                    if matches!(contender, Contender::Swarm | Contender::Star) {
                        report.left_out.push(format!("{}, {}: {why}", scenario.name(), contender.name()));
                    }
                    continue;
                }
                let outcome = scenario.run(self, *contender, megabytes, 1);
                let outcome =
                    outcome.with_context(|| format!("{}, {}", scenario.name(), contender.name()))?;
                say(&format!("{}, {}: done", scenario.name(), contender.name()));
                report.scenarios.push(outcome);
            }
        }
        if contenders.contains(&Contender::Swarm) && self.is_wanted(training::NAME) {
            report.scenarios.push(training::run(self).context(training::NAME)?);
        }
        Ok(())
    }
}

fn say(line: &str) {
    eprintln!("{} {line}", style("==").cyan().bold());
}
