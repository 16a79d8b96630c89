//! `cargo xtask docs`: the reference pages, from the code.

use anyhow::{Context, Result, bail};

use crate::cargo;

/// The tests that compare the pages write them where this is set.
const WRITE_VARIABLE: &str = "HATCHERY_DOCS_WRITE";

/// Writes every page of `docs/reference/`.
pub(crate) fn run() -> Result<()> {
    let mut tests =
        cargo::command(&["test", "--quiet", "-p", "hatchery-docs", "-p", "hatchery-cli", "the_reference_of"]);
    let status = tests.env(WRITE_VARIABLE, "1").status().context("cannot start cargo")?;
    if !status.success() {
        bail!("cannot write the reference pages");
    }
    Ok(())
}
