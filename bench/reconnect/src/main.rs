//! `cargo xtask bench reconnect`: how long it takes until all agents are back.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

/// A fleet that loses its coordinator and finds it again, all agents at once
#[derive(Parser)]
#[command(
    name = "cargo xtask bench reconnect",
    bin_name = "cargo xtask bench reconnect",
    max_term_width = 110
)]
struct Arguments {
    /// Number of agents
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Seconds for which the coordinator is down
    #[arg(long, default_value_t = 0)]
    gone_secs: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { agents, gone_secs } = Arguments::parse();
    let outcome = hatchery_bench_reconnect::measure(agents, Duration::from_secs(gone_secs)).await?;
    println!("{outcome}");
    let has_all = outcome.jobs_running == agents && outcome.jobs == agents;
    ensure!(has_all, "{} of {agents} attempts go on", outcome.jobs_running);
    ensure!(gone_secs > 0 || outcome.leases_over == 0, "{} leases ran out", outcome.leases_over);
    Ok(())
}
