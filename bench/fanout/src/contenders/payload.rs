//! The file that is brought, where it is no checkpoint of the house.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Its name, with the source and with everybody else.
pub(super) const FILE: &str = "payload";

/// Writes a file of bytes without any pattern, and gives them.
pub(super) fn write(folder: &Path, megabytes: u64, seed: u64) -> Result<Vec<u8>> {
    fs::create_dir_all(folder)?;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let bytes: Vec<u8> = (0..megabytes * 1_000_000 / 8).flat_map(|_| word().to_le_bytes()).collect();
    let path = folder.join(FILE);
    fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(bytes)
}
