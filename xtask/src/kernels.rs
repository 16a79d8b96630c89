//! `cargo xtask kernels`: whether the trainer's kernels compile for every generation of GPUs. No GPU is needed.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo;
use crate::setup;

/// Builds the trainer, and compiles its kernels.
pub(crate) fn run() -> Result<()> {
    setup::run(&setup::Options::default())?;
    compile(&cargo::build(
        &["--package", "hatchery-trainer", "--bin", "hatchery-trainer"],
        "hatchery-trainer",
    )?)
}

/// Compiles the kernels of this trainer.
pub(crate) fn compile(trainer: &std::path::Path) -> Result<()> {
    let Some(compiler) = setup::compiler()? else {
        eprintln!("this system has no CUDA: no kernels to compile");
        return Ok(());
    };
    let status = Command::new(trainer).arg("kernels").env("LD_LIBRARY_PATH", compiler).status();
    ensure!(status.context("cannot start the trainer")?.success(), "not all kernels compile");
    Ok(())
}
