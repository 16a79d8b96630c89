//! `hatchery-chaos SECONDS [SEED [WORD]]`: a run by hand, of all faults or of those that have a word in their names; `cargo xtask chaos` builds what it needs and starts it.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hatchery_tests::chaos::{Plan, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Option<Vec<u64>> = arguments.iter().take(2).map(|text| text.parse().ok()).collect();
    let only = arguments.get(2).cloned().unwrap_or_default();
    let (secs, seed) = match numbers.as_deref() {
        Some([secs]) => (*secs, drawn()),
        Some([secs, seed]) if arguments.len() <= 3 => (*secs, *seed),
        _ => {
            eprintln!("usage: hatchery-chaos SECONDS [SEED [WORD]]");
            return ExitCode::from(2);
        }
    };
    eprintln!("seed {seed}");
    let plan = Plan { time: Duration::from_secs(secs), seed, points: String::new(), only };
    match run(plan, &|line| eprintln!("{line}")) {
        Ok(report) => {
            println!("{report}");
            if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("the run could not be done: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A seed that nobody has chosen.
fn drawn() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64 % 1_000_000)
}
