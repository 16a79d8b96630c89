//! Whether a disk has room for what a build and the tests write: one that is full halfway makes something else fail.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use indicatif::HumanBytes;

use crate::repo;

/// So much a build of everything and the tests write.
const NEEDED_BYTES: u64 = 10_000_000_000;
/// The same where nothing is kept for the next build.
const NEEDED_BYTES_NOT_INCREMENTAL: u64 = 6_500_000_000;
/// So much has to be free however much is built already.
const FREE_BYTES_MIN: u64 = 2_000_000_000;

/// An error says how much room is missing, and where.
pub(crate) fn check() -> Result<()> {
    let target = target();
    let disk = rustix::fs::statvfs(&target)
        .with_context(|| format!("cannot read the free disk space of {}", target.display()))?;
    let free_bytes = disk.f_bavail * disk.f_frsize;
    // Counting what is built takes a moment; mostly there is no need.
    let is_incremental = std::env::var_os("CARGO_INCREMENTAL").is_none_or(|value| value != "0");
    let needed_bytes = if is_incremental { NEEDED_BYTES } else { NEEDED_BYTES_NOT_INCREMENTAL };
    let missing_bytes = if free_bytes >= needed_bytes {
        0
    } else {
        // Without those that are meant for other builds.
        missing(needed_bytes, free_bytes, size_bytes(&target.join("debug")))
    };
    if missing_bytes > 0 {
        bail!(
            "the disk of {} has {} free, and a build with its tests needs {} more: free some space, or set \
             CARGO_TARGET_DIR to a folder on another disk",
            target.display(),
            HumanBytes(free_bytes),
            HumanBytes(missing_bytes)
        );
    }
    Ok(())
}

/// How much is missing where so much is needed in all, is free, and is built.
fn missing(needed_bytes: u64, free_bytes: u64, built_bytes: u64) -> u64 {
    needed_bytes.saturating_sub(built_bytes).max(FREE_BYTES_MIN).saturating_sub(free_bytes)
}

/// The target folder, however cargo was told where it is: this program lies in it, in the folder of its profile.
fn target() -> PathBuf {
    let own = std::env::current_exe().ok();
    let folder = own.as_deref().and_then(Path::parent).and_then(Path::parent);
    folder.map_or_else(|| repo::root().join("target"), Path::to_path_buf)
}

/// What lies below a folder, about: what cannot be read counts for nothing.
fn size_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => size_bytes(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |metadata| metadata.len()),
        _ => 0,
    };
    entries.map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_needs_no_room_again() {
        let missing = |free_bytes, built_bytes| missing(6_000_000_000, free_bytes, built_bytes);
        assert_eq!(missing(6_000_000_000, 0), 0);
        assert_eq!(missing(22_609_920, 0), 5_977_390_080);
        assert_eq!(missing(3_000_000_000, 1_000_000_000), 2_000_000_000);
        assert_eq!(missing(3_000_000_000, 9_000_000_000), 0);
        assert_eq!(missing(1_500_000_000, 9_000_000_000), 500_000_000);
    }

    #[test]
    fn a_folder_is_counted_with_all_below_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        fs::write(folder.path().join("a"), [0; 10]).unwrap();
        fs::write(folder.path().join("below/b"), [0; 5]).unwrap();
        assert_eq!(size_bytes(folder.path()), 15);
        assert_eq!(size_bytes(&folder.path().join("none")), 0);
    }
}
