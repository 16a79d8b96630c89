//! What a dataset is made of, and its name.

use serde::{Deserialize, Serialize};

use super::{CORPUS_BYTES_MAX, FILES_MAX, SEPARATOR};
use crate::{
    digest::Digest,
    field::FieldError,
    id::{BlobId, DatasetId, Name},
};

/// One file of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetFile {
    /// Path within the dataset: relative, `/` between parts, no `.` or `..` parts.
    pub path: String,
    /// Its bytes.
    pub blob: BlobId,
    /// How many bytes.
    pub size_bytes: u64,
}

/// An immutable list of files, sorted by path. Its id is the digest of its canonical bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawManifest")]
pub struct DatasetManifest {
    name: Name,
    files: Vec<DatasetFile>,
}

#[derive(Deserialize)]
struct RawManifest {
    name: Name,
    files: Vec<DatasetFile>,
}

impl DatasetManifest {
    /// Checks and sorts `files`.
    pub fn new(name: Name, mut files: Vec<DatasetFile>) -> Result<Self, FieldError> {
        if files.is_empty() || files.len() > FILES_MAX {
            return Err(FieldError::new(
                "files",
                format!("a dataset has 1 to {FILES_MAX} files, not {}", files.len()),
            ));
        }
        files.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        let mut corpus_bytes = 0u64;
        for (index, file) in files.iter().enumerate() {
            check_path(&file.path)?;
            if index > 0 && files[index - 1].path == file.path {
                return Err(FieldError::new("files", format!("{:?} is listed twice", file.path)));
            }
            corpus_bytes =
                corpus_bytes.saturating_add(file.size_bytes).saturating_add(SEPARATOR.len() as u64);
        }
        if corpus_bytes > CORPUS_BYTES_MAX {
            return Err(FieldError::new(
                "files",
                format!("the corpus has {corpus_bytes} bytes, more than the limit of {CORPUS_BYTES_MAX}"),
            ));
        }
        Ok(Self { name, files })
    }

    /// What people call it.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The files, sorted by path.
    pub fn files(&self) -> &[DatasetFile] {
        &self.files
    }

    /// The length of the corpus, separators included.
    pub fn corpus_bytes(&self) -> u64 {
        let separators = (self.files.len() - 1) * SEPARATOR.len();
        self.files.iter().map(|file| file.size_bytes).sum::<u64>() + separators as u64
    }

    /// The digest of the files alone: the same text under another name is the same dataset.
    pub fn id(&self) -> DatasetId {
        let files = serde_json::to_vec(&self.files).expect("a list of paths and numbers is always JSON");
        DatasetId(Digest::of(&files))
    }
}

impl TryFrom<RawManifest> for DatasetManifest {
    type Error = FieldError;

    fn try_from(raw: RawManifest) -> Result<Self, FieldError> {
        Self::new(raw.name, raw.files)
    }
}

fn check_path(path: &str) -> Result<(), FieldError> {
    const PATH_BYTES_MAX: usize = 4096;
    let whole = !path.is_empty() && path.len() <= PATH_BYTES_MAX && !path.contains(['\\', '\0']);
    if whole && path.split('/').all(|part| !matches!(part, "" | "." | "..")) {
        return Ok(());
    }
    Err(FieldError::new("files", format!("{path:?} is not a plain relative path")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, size_bytes: u64) -> DatasetFile {
        DatasetFile { path: path.into(), blob: BlobId(Digest::of(path.as_bytes())), size_bytes }
    }

    #[test]
    fn the_id_follows_from_the_files_in_any_order() {
        let one = DatasetManifest::new(Name::from_lossy("a"), vec![file("b", 2), file("a/c", 3)]).unwrap();
        let two = DatasetManifest::new(Name::from_lossy("b"), vec![file("a/c", 3), file("b", 2)]).unwrap();
        assert_eq!(one.id(), two.id());
        assert_eq!(one.corpus_bytes(), 7);
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<DatasetManifest>(&text).unwrap(), one);
    }

    #[test]
    fn tricks_in_paths_are_refused() {
        for path in ["../x", "/etc/passwd", "a//b", "a/./b", "a\\b", "", "a\0"] {
            assert!(DatasetManifest::new(Name::from_lossy("a"), vec![file(path, 1)]).is_err(), "{path:?}");
        }
        assert!(DatasetManifest::new(Name::from_lossy("a"), vec![]).is_err());
        assert!(DatasetManifest::new(Name::from_lossy("a"), vec![file("a", 1), file("a", 1)]).is_err());
        assert!(DatasetManifest::new(Name::from_lossy("a"), vec![file("a", u64::MAX - 2)]).is_err());
        assert!(DatasetManifest::new(Name::from_lossy("a"), vec![file("a", u64::MAX)]).is_err());
    }
}
