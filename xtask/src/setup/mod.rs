//! `cargo xtask setup`: the toolchain checked, libtorch in its folder.

mod http;
mod index;
mod layout;
mod libtorch;
mod manifest;
mod pip;
mod platform;
mod record;
mod requirement;
mod url;
mod wheel;
mod zip;

use anyhow::Result;

use crate::repo;
use platform::{Flavour, Platform};

/// Flags of `setup`.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Take the CUDA libraries too, whether or not this machine has an NVIDIA driver
    #[arg(long, conflicts_with = "cpu")]
    cuda: bool,
    /// Take the CPU libraries only
    #[arg(long)]
    cpu: bool,
}

/// Checks the toolchain and makes sure that libtorch is there.
pub(crate) fn run(options: &Options) -> Result<()> {
    let platform = Platform::current()?;
    let flavour = match (options.cpu, options.cuda) {
        (true, _) => Flavour::Cpu,
        (_, true) => Flavour::Cuda,
        _ => platform::detect_flavour(platform),
    };
    libtorch::ensure(&repo::libtorch(), platform, flavour, options.cpu || options.cuda)?;
    Ok(())
}
