//! `cargo xtask kernels`: whether the trainer's kernels compile for NVIDIA's GPUs from compute capability 8.0 on. None is needed.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::setup;

/// Builds the trainer, and compiles its kernels.
pub(crate) fn run() -> Result<()> {
    setup::run(&setup::Options::default())?;
    let trainer =
        cargo::build(&["--package", "hatchery-trainer", "--bin", "hatchery-trainer"], "hatchery-trainer")?;
    if let Some(compiler) = setup::compiler()? {
        return compile(&trainer, &compiler);
    }
    eprintln!("there is no CUDA for this system: no kernels to compile");
    Ok(())
}

/// The same for a trainer that is built, among other tests: a machine that NVIDIA's compiler cannot be had on says so and goes on.
pub(crate) fn compile_where_possible(trainer: &Path) -> Result<()> {
    match setup::compiler() {
        Ok(Some(compiler)) => compile(trainer, &compiler),
        Ok(None) => Ok(()),
        Err(error) => {
            eprintln!("the kernels are NOT compiled, as NVIDIA's compiler is missing: {error:#}");
            Ok(())
        }
    }
}

fn compile(trainer: &Path, compiler: &Path) -> Result<()> {
    const LIBRARIES: &str = "LD_LIBRARY_PATH";
    let mut libraries = OsString::from(compiler);
    if let Some(others) = std::env::var_os(LIBRARIES) {
        libraries.push(":");
        libraries.push(others);
    }
    let status = Command::new(trainer).arg("kernels").env(LIBRARIES, libraries).status();
    ensure!(status.context("cannot start the trainer")?.success(), "not all kernels compile");
    Ok(())
}
