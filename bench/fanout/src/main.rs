//! `hatchery-bench-fanout`: the measurement as a program. It takes `hatchery` and `fanout-stand-in` from its own folder.

use anyhow::Result;

#[cfg(target_os = "linux")]
fn main() -> Result<()> {
    hatchery_bench_fanout::run(clap::Parser::parse())
}

#[cfg(not(target_os = "linux"))]
fn main() -> Result<()> {
    anyhow::bail!(
        "links are shaped by Linux's kernel: here there is `cargo xtask bench fanout --simulate` alone"
    )
}
