//! What a release is made of, and where it lies. The trainer finds its libtorch by this layout: see its build script.
//!
//! ```text
//! bin/hatchery  bin/hatchery-trainer
//! libtorch/torch/lib/  libtorch/nvidia/*/lib/      the libraries, without headers
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use crate::cargo::Binaries;
use crate::setup;

/// The two programs, by the names that people type.
pub(crate) const PROGRAMS: [&str; 2] = ["hatchery", "hatchery-trainer"];

/// A file of a release: where it is now, and its path within the release.
pub(crate) struct File {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
}

/// The programs and the libraries that they run on.
pub(crate) fn files(binaries: &Binaries, cpu_only: bool) -> Result<Vec<File>> {
    let [hatchery, trainer] = PROGRAMS.map(|program| Path::new("bin").join(program));
    let programs = [
        File { from: binaries.hatchery.clone(), to: hatchery },
        File { from: binaries.trainer.clone(), to: trainer },
    ];
    let libraries = setup::runtime_files(cpu_only)?.into_iter();
    let libraries = libraries.map(|(from, path)| File { from, to: Path::new("libtorch").join(path) });
    Ok(programs.into_iter().chain(libraries).collect())
}

/// Writes a page of the manual for each command into `folder`.
pub(crate) fn write_manual(hatchery: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let output = Command::new(hatchery).arg("man").arg(folder).output();
    succeeded("hatchery man", &output.context("cannot start hatchery")?)
}

/// Copies a file; a hard link serves where both are on one disk.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(drop))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Starts the programs in `bin` without any environment; the trainer must run on the libtorch in `libtorch`.
pub(crate) fn smoke_test(bin: &Path, libtorch: &Path) -> Result<()> {
    let home = tempfile::tempdir().context("no temporary folder")?;
    let mut printed = String::new();
    for (program, argument) in PROGRAMS.into_iter().zip(["version", "doctor"]) {
        let output = Command::new(bin.join(program))
            .arg(argument)
            .env_clear()
            .env("HOME", home.path())
            .current_dir(home.path())
            .output()
            .with_context(|| format!("{} does not start", bin.join(program).display()))?;
        eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        succeeded(&format!("{program} {argument}"), &output)?;
        printed += &String::from_utf8_lossy(&output.stdout);
    }
    let libtorch = libtorch.canonicalize()?;
    if !printed.contains(&*libtorch.to_string_lossy()) {
        bail!("the trainer does not run on the libtorch in {}", libtorch.display());
    }
    Ok(())
}

fn succeeded(what: &str, output: &Output) -> Result<()> {
    if !output.status.success() {
        bail!("`{what}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
