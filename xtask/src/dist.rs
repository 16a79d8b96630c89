//! `cargo xtask dist`: a release archive that runs from any folder, and the proof that it does.
//!
//! ```text
//! hatchery-VERSION-OS-ARCH/
//!   README.md  LICENSE
//!   bin/hatchery  bin/hatchery-trainer
//!   libtorch/torch/lib/  libtorch/nvidia/*/lib/      the libraries, without headers
//!   deploy/                                          units, container file, example fleet
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use indicatif::HumanBytes;

use crate::cargo::{self, Binaries, Profile};
use crate::phases::Phases;
use crate::{repo, setup};

/// Flags of `dist`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave CUDA's libraries out, although they are installed here
    #[arg(long)]
    cpu: bool,
}

/// Builds the archive, unpacks it in an empty folder and starts what is in it there.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut phases = Phases::default();
    phases.run("setup", || setup::run(&setup::Options::default()))?;
    let binaries = phases.run("build", || cargo::build_binaries(Profile::Relocatable))?;
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
    copy(&binaries.hatchery, &top.join("bin/hatchery"))?;
    copy(&binaries.trainer, &top.join("bin/hatchery-trainer"))?;
    let root = repo::root();
    copy(&root.join("LICENSE"), &top.join("LICENSE"))?;
    copy(&root.join("deploy/README.md"), &top.join("README.md"))?;
    copy_folder(&root.join("deploy"), &top.join("deploy"))?;
    let libtorch = setup::runtime_files(cpu_only)?;
    for (from, to) in &libtorch {
        copy(from, &top.join("libtorch").join(to))?;
    }

    let archive = dist.join(format!("{name}.tar.gz"));
    let status =
        Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(scratch.path()).arg(name).status();
    if !status.context("cannot start tar: install it with this system's package manager")?.success() {
        bail!("tar could not write {}", archive.display());
    }
    Ok(archive)
}

/// Copies a file; a hard link serves where both are on one disk.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(drop))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
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
    let mut printed = String::new();
    for (binary, argument) in [("hatchery", "version"), ("hatchery-trainer", "doctor")] {
        let output = Command::new(top.join("bin").join(binary))
            .arg(argument)
            .env_clear()
            .env("HOME", scratch.path())
            .current_dir(scratch.path())
            .output()
            .with_context(|| format!("the packed {binary} does not start"))?;
        eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("the packed `{binary} {argument}` failed ({})", output.status);
        }
        printed += &String::from_utf8_lossy(&output.stdout);
    }
    let libtorch = top.join("libtorch").canonicalize()?;
    if !printed.contains(&*libtorch.to_string_lossy()) {
        bail!("the packed trainer does not run on the packed libtorch in {}", libtorch.display());
    }
    Ok(())
}
