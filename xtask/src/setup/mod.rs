//! `cargo xtask setup`: the toolchain checked, libtorch in its folder.

mod archive;
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

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use console::style;
use indicatif::HumanBytes;

use crate::repo;
use manifest::Manifest;
use platform::{Flavour, Platform};

/// Flags of `setup`.
#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Include the CUDA libraries, even without an NVIDIA driver on this machine
    #[arg(long, conflicts_with = "cpu")]
    cuda: bool,
    /// Only the CPU libraries
    #[arg(long)]
    cpu: bool,
}

/// Checks the toolchain and makes sure that libtorch is there.
pub(crate) fn run(options: &Options) -> Result<()> {
    toolchain::check()?;
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        bail!("LIBTORCH_USE_PYTORCH is set, which would link Python's libtorch: unset it");
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
        bail!("there are no CUDA libraries for {platform}; omit --cuda");
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

/// Whether there is nothing to fetch, as far as can be seen at a glance.
pub(crate) fn is_done() -> bool {
    let default = repo::libtorch().join("torch");
    let has_own = own::folder(std::env::var_os("LIBTORCH"), &default).is_ok_and(|own| own.is_some());
    has_own || Manifest::read(&repo::libtorch()).is_some()
}

/// The folder of NVIDIA's compiler for kernels: that of an installed libtorch with CUDA, or one of its own, fetched if it is not
/// there. None on a system without CUDA.
pub(crate) fn compiler() -> Result<Option<PathBuf>> {
    let Some(platform) = Platform::current().ok().filter(|platform| platform.is_linux()) else {
        return Ok(None);
    };
    let installed = repo::libtorch().join(libtorch::COMPILER_LIBRARIES);
    if installed.join(libtorch::COMPILER_LIBRARY).exists() {
        return Ok(Some(installed));
    }
    libtorch::ensure_compiler(&repo::root().join("target/nvrtc"), platform).map(Some)
}

/// What a release takes of the installed libtorch: each file, and its path below the release's `libtorch/`.
pub(crate) fn runtime_files(cpu_only: bool) -> Result<Vec<(PathBuf, String)>> {
    let folder = repo::libtorch();
    let manifest = Manifest::read(&folder)
        .context("a release needs the libtorch of `cargo xtask setup`: unset LIBTORCH")?;
    let paths = manifest.files.into_keys();
    Ok(paths
        .filter(|path| layout::is_for_running(path, manifest.platform, cpu_only))
        .map(|path| (folder.join(&path), path))
        .collect())
}
