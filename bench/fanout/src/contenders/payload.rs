//! The file that is brought, where it is no checkpoint of Hatchery.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hatchery_fake_trainer::noise;

/// Its name, with the source and with everybody else.
pub(super) const FILE: &str = "payload";

/// Writes a file of bytes without any pattern, and gives them.
pub(super) fn write(folder: &Path, megabytes: u64, seed: u64) -> Result<Vec<u8>> {
    fs::create_dir_all(folder)?;
    let bytes = noise(megabytes * 1_000_000, seed);
    let path = folder.join(FILE);
    fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(bytes)
}
