//! `cargo xtask dist`: a release archive that runs from any folder, and the proof that it does.
//!
//! ```text
//! hatchery-VERSION-OS-ARCH/
//!   README.md  LICENSE
//!   bin/  libtorch/      see `release`
//!   man/                 a page of the manual for each command
//!   deploy/              units, container file, example fleet
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use indicatif::HumanBytes;

use crate::cargo::{self, Binaries, Profile};
use crate::phases::Phases;
use crate::release::{self, copy};
use crate::repo;

/// Flags of `dist`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave out the CUDA libraries, even if installed here
    #[arg(long)]
    cpu: bool,
}

/// Builds the archive, unpacks it in an empty folder and starts what is in it there.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut phases = Phases::default();
    let binaries = phases.run("build", || cargo::set_up_and_build(Profile::Relocatable))?;
    let name =
        format!("hatchery-{}-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::OS, std::env::consts::ARCH);
    let dist = repo::root().join("dist");
    let archive = phases.run("pack", || pack(&dist, &name, &binaries, options.cpu))?;
    phases.run("try it", || smoke_test(&dist, &archive, &name))?;
    phases.print();
    let size_bytes = fs::metadata(&archive)?.len();
    println!("{} ({})", archive.display(), HumanBytes(size_bytes));
    Ok(())
}

fn pack(dist: &Path, name: &str, binaries: &Binaries, cpu_only: bool) -> Result<PathBuf> {
    fs::create_dir_all(dist).with_context(|| format!("cannot create {}", dist.display()))?;
    let scratch = tempfile::tempdir_in(dist).context("cannot write to dist/")?;
    let top = scratch.path().join(name);
    for file in release::files(binaries, cpu_only)? {
        copy(&file.from, &top.join(file.to))?;
    }
    release::write_manual(&binaries.hatchery, &top.join("man"))?;
    let root = repo::root();
    copy(&root.join("LICENSE"), &top.join("LICENSE"))?;
    copy(&root.join("deploy/README.md"), &top.join("README.md"))?;
    copy_folder(&root.join("deploy"), &top.join("deploy"))?;

    let archive = dist.join(format!("{name}.tar.gz"));
    let status =
        Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(scratch.path()).arg(name).status();
    if !status.context("cannot start tar: install it with this system's package manager")?.success() {
        bail!("tar could not write {}", archive.display());
    }
    Ok(archive)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            copy(&entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Unpacks the archive where nothing else is and starts both binaries without any environment.
fn smoke_test(dist: &Path, archive: &Path, name: &str) -> Result<()> {
    // Beside the archive: the system's temporary folder may be too small for it.
    let scratch = tempfile::tempdir_in(dist).context("cannot write to dist/")?;
    let status = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(scratch.path()).status()?;
    if !status.success() {
        bail!("tar cannot unpack {}", archive.display());
    }
    let top = scratch.path().join(name);
    release::smoke_test(&top.join("bin"), &top.join("libtorch"))
}
