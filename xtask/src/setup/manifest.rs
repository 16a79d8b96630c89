//! `libtorch/manifest.json`: what `setup` put there, so that the next run sees at once that nothing is to do.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::platform::{Flavour, Platform};
use super::record::Recorded;

const FILE: &str = "manifest.json";

/// One file below the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) size_bytes: u64,
    /// SHA-256, as lower-case hex.
    pub(crate) sha256: String,
}

impl From<Recorded> for Entry {
    fn from(recorded: Recorded) -> Self {
        Self { size_bytes: recorded.size_bytes, sha256: recorded.sha256 }
    }
}

/// All that was installed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Which files were taken, as `layout::LAYOUT` counts.
    #[serde(default)]
    pub(crate) layout: u32,
    pub(crate) version: String,
    /// Platform it is for.
    pub(crate) platform: Platform,
    /// How much of it is there.
    pub(crate) flavour: Flavour,
    /// Every file, by its path below the folder.
    pub(crate) files: BTreeMap<String, Entry>,
}

impl Manifest {
    /// Reads the manifest of `folder`; `None` where there is none that can be read.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// Writes it, through a temporary file.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let (path, temporary) = (folder.join(FILE), folder.join(format!("{FILE}.new")));
        std::fs::write(&temporary, serde_json::to_vec_pretty(self)?)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the manifest: from now on the folder counts as incomplete.
    pub(crate) fn remove(folder: &Path) -> Result<()> {
        match std::fs::remove_file(folder.join(FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot change {}", folder.display()))
            }
            _ => Ok(()),
        }
    }

    /// The first file that is missing or has another length than was installed.
    pub(crate) fn first_missing(&self, folder: &Path) -> Option<&str> {
        let is_there = |path: &str, entry: &Entry| {
            std::fs::metadata(folder.join(path)).is_ok_and(|found| found.len() == entry.size_bytes)
        };
        self.files.iter().find(|(path, entry)| !is_there(path, entry)).map(|(path, _)| path.as_str())
    }

    /// Total length of the files, in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.files.values().map(|entry| entry.size_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_as_written_and_sees_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry { size_bytes: 3, sha256: "00".into() };
        let manifest = Manifest {
            layout: 2,
            version: "2.11.0".into(),
            platform: Platform::LinuxAarch64,
            flavour: Flavour::Cpu,
            files: BTreeMap::from([("a".to_owned(), entry.clone()), ("b".to_owned(), entry)]),
        };
        manifest.write(folder.path()).unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), manifest);
        std::fs::write(folder.path().join("a"), "abc").unwrap();
        assert_eq!(manifest.first_missing(folder.path()), Some("b"));
        std::fs::write(folder.path().join("b"), "ab").unwrap();
        assert_eq!(manifest.first_missing(folder.path()), Some("b"), "too short counts as missing");
        std::fs::write(folder.path().join("b"), "abc").unwrap();
        assert_eq!(manifest.first_missing(folder.path()), None);
        Manifest::remove(folder.path()).unwrap();
        Manifest::remove(folder.path()).unwrap();
        assert!(Manifest::read(folder.path()).is_none());
    }
}
