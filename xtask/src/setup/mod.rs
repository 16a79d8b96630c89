//! `cargo xtask setup`: the toolchain checked, libtorch in its folder.

mod http;
mod index;
mod layout;
mod libtorch;
mod manifest;
mod own;
mod pip;
mod platform;
mod record;
mod requirement;
mod toolchain;
mod url;
mod wheel;
mod zip;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use anyhow::{Result, bail};
use console::style;
use indicatif::HumanBytes;

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
    toolchain::check()?;
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        bail!("LIBTORCH_USE_PYTORCH is set, which would link whatever Python has installed: unset it");
    }
    let default = repo::libtorch().join("torch");
    if let Some(folder) = own::folder(std::env::var_os("LIBTORCH"), &default)? {
        let version = own::check(&folder)?;
        eprintln!(
            "{} libtorch      {version} in {} (LIBTORCH is set)",
            style("ok     ").green(),
            folder.display()
        );
        return Ok(());
    }
    let platform = Platform::current()?;
    let flavour = match (options.cpu, options.cuda) {
        (true, _) => Flavour::Cpu,
        (_, true) => Flavour::Cuda,
        _ => platform::detect_flavour(platform),
    };
    if flavour == Flavour::Cuda && !platform.is_linux() {
        bail!("there are no CUDA libraries for {platform}; leave --cuda out");
    }
    let manifest = libtorch::ensure(&repo::libtorch(), platform, flavour, options.cpu || options.cuda)?;
    eprintln!(
        "{} libtorch      {} for {platform}, {} libraries, {}",
        style("ok     ").green(),
        manifest.version,
        manifest.flavour,
        HumanBytes(manifest.size_bytes())
    );
    Ok(())
}
