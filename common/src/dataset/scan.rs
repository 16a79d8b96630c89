//! Finding a dataset's files on disk.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
};

use globset::{Glob, GlobSet, GlobSetBuilder};
use walkdir::WalkDir;

use super::{CORPUS_BYTES_MAX, FILES_MAX, SEPARATOR};
use crate::recipe::DataSpec;

/// Why a corpus is refused.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// No path was given.
    #[error("no data: give a file or a folder")]
    NoPaths,
    /// Reading failed.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The corpus cannot be written down.
    #[error("cannot write the corpus: {0}; it needs as much disk space as its files")]
    Write(io::Error),
    /// A path leads upwards.
    #[error("{}: a path with `..` is refused; give the folder itself", .0.display())]
    UpwardPath(PathBuf),
    /// A link leads out of its folder.
    #[error("{}: this link leads out of the folder, to {}; copy the file in or leave it out", link.display(), target.display())]
    LinkOutside {
        /// The link.
        link: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A pipe, socket or device.
    #[error("{}: not a regular file; leave it out with `include` globs", .0.display())]
    NotAFile(PathBuf),
    /// A name is not Unicode.
    #[error("{}: the name is not valid UTF-8; rename the file", .0.display())]
    NotUnicode(PathBuf),
    /// A glob is wrong.
    #[error("invalid glob `{glob}`: {problem}")]
    Glob {
        /// As given.
        glob: String,
        /// What is wrong.
        problem: String,
    },
    /// Nothing matched.
    #[error("no file found in {searched}{}", if *globbed { " that matches the globs" } else { "" })]
    Empty {
        /// The paths given.
        searched: String,
        /// Whether globs were given.
        globbed: bool,
    },
    /// Two paths give the same name.
    #[error("two files would have the name {0:?} in the dataset; give their common folder instead")]
    SameName(String),
    /// Over a limit.
    #[error("the corpus has {have} {what}, more than the limit of {limit}")]
    TooLarge {
        /// `files` or `bytes`.
        what: &'static str,
        /// How many.
        have: u64,
        /// How many there may be.
        limit: u64,
    },
    /// It changed while it was read.
    #[error("{}: the size changed from {expected} to {found} bytes while it was read; try again once the file no longer changes", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Bytes at first.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
}

/// One file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its path within the dataset.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// How many bytes.
    pub size_bytes: u64,
}

/// The files of a corpus, sorted by their paths within the dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The files; at least one.
    pub files: Vec<SourceFile>,
}

/// Finds the files that `data` names. Folders are read recursively; hidden files count.
pub fn scan(data: &DataSpec) -> Result<Scan, DatasetError> {
    if data.paths.is_empty() {
        return Err(DatasetError::NoPaths);
    }
    let include = globs(&data.include)?;
    let mut files = Vec::new();
    for path in &data.paths {
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(DatasetError::UpwardPath(path.clone()));
        }
        let metadata =
            fs::metadata(path).map_err(|source| DatasetError::Read { path: path.clone(), source })?;
        if metadata.is_dir() {
            // Several folders keep their own names as the first part, so that equal names inside do not meet.
            let prefix = if data.paths.len() > 1 { path.file_name() } else { None };
            scan_folder(path, prefix.map(Path::new), include.as_ref(), &mut files)?;
        } else if metadata.is_file() {
            let name = path.file_name().map_or(path.as_path(), Path::new);
            files.push(SourceFile { name: unicode(name)?, path: path.clone(), size_bytes: metadata.len() });
        } else {
            return Err(DatasetError::NotAFile(path.clone()));
        }
    }
    files.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    if let Some(pair) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(DatasetError::SameName(pair[0].name.clone()));
    }
    if files.is_empty() {
        let searched =
            data.paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(DatasetError::Empty { searched, globbed: include.is_some() });
    }
    let scan = Scan { files };
    if scan.corpus_bytes() > CORPUS_BYTES_MAX {
        return Err(DatasetError::TooLarge {
            what: "bytes",
            have: scan.corpus_bytes(),
            limit: CORPUS_BYTES_MAX,
        });
    }
    Ok(scan)
}

impl Scan {
    /// The length of the corpus, separators included.
    pub fn corpus_bytes(&self) -> u64 {
        let separators = (self.files.len().saturating_sub(1) * SEPARATOR.len()) as u64;
        self.files.iter().map(|file| file.size_bytes).sum::<u64>() + separators
    }

    /// Writes the corpus: every file's bytes, joined by the separator.
    pub fn write_corpus(&self, mut to: impl Write) -> Result<(), DatasetError> {
        const CHUNK_BYTES: usize = 1 << 16;
        let mut chunk = vec![0; CHUNK_BYTES];
        for (index, file) in self.files.iter().enumerate() {
            let failed = |source| DatasetError::Read { path: file.path.clone(), source };
            if index > 0 {
                to.write_all(SEPARATOR).map_err(DatasetError::Write)?;
            }
            let mut reader = File::open(&file.path).map_err(failed)?.take(file.size_bytes + 1);
            let mut found = 0;
            loop {
                let count = reader.read(&mut chunk).map_err(failed)?;
                if count == 0 {
                    break;
                }
                to.write_all(&chunk[..count]).map_err(DatasetError::Write)?;
                found += count as u64;
            }
            if found != file.size_bytes {
                return Err(DatasetError::Changed {
                    path: file.path.clone(),
                    expected: file.size_bytes,
                    found,
                });
            }
        }
        Ok(())
    }
}

fn scan_folder(
    folder: &Path,
    prefix: Option<&Path>,
    include: Option<&GlobSet>,
    files: &mut Vec<SourceFile>,
) -> Result<(), DatasetError> {
    let failed = |path: &Path, source| DatasetError::Read { path: path.to_owned(), source };
    let root = fs::canonicalize(folder).map_err(|source| failed(folder, source))?;
    for entry in WalkDir::new(folder).follow_links(false).sort_by_file_name() {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(folder).to_owned();
            failed(&path, error.into())
        })?;
        let path = entry.path();
        if entry.file_type().is_dir() {
            continue;
        }
        let within = path.strip_prefix(folder).expect("walking a folder gives paths below it");
        if include.is_some_and(|include| !include.is_match(within)) {
            continue;
        }
        if entry.file_type().is_symlink() {
            let target = fs::canonicalize(path).map_err(|source| failed(path, source))?;
            if !target.starts_with(&root) {
                return Err(DatasetError::LinkOutside { link: path.to_owned(), target });
            }
        }
        let metadata = fs::metadata(path).map_err(|source| failed(path, source))?;
        if metadata.is_dir() {
            continue; // A link to a folder inside: its files are found at their own place.
        }
        if !metadata.is_file() {
            return Err(DatasetError::NotAFile(path.to_owned()));
        }
        if files.len() == FILES_MAX {
            let limit = FILES_MAX as u64;
            return Err(DatasetError::TooLarge { what: "files", have: limit + 1, limit });
        }
        let name = unicode(&prefix.map_or_else(|| within.to_owned(), |prefix| prefix.join(within)))?;
        files.push(SourceFile { name, path: path.to_owned(), size_bytes: metadata.len() });
    }
    Ok(())
}

fn unicode(path: &Path) -> Result<String, DatasetError> {
    path.to_str().map(str::to_owned).ok_or_else(|| DatasetError::NotUnicode(path.to_owned()))
}

fn globs(patterns: &[String]) -> Result<Option<GlobSet>, DatasetError> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let wrong = |glob: &str, error: globset::Error| DatasetError::Glob {
        glob: glob.into(),
        problem: error.to_string(),
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|error| wrong(pattern, error))?);
    }
    set.build().map(Some).map_err(|error| wrong(&patterns.join(" "), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(paths: &[&Path], include: &[&str]) -> DataSpec {
        DataSpec {
            paths: paths.iter().map(|path| path.to_path_buf()).collect(),
            include: include.iter().map(|glob| (*glob).to_owned()).collect(),
        }
    }

    fn corpus(data: &DataSpec) -> String {
        let mut bytes = Vec::new();
        let scan = scan(data).unwrap();
        scan.write_corpus(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, scan.corpus_bytes());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_its_paths() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        for (name, text) in [("b/x.md", "three"), ("a.md", "one"), ("b.md", "two"), ("skip.txt", "no")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(corpus(&data(&[folder.path()], &["**/*.md"])), "one\n\ntwo\n\nthree");
        assert_eq!(corpus(&data(&[&folder.path().join("a.md")], &[])), "one");
        let empty = scan(&data(&[folder.path()], &["*.rst"])).unwrap_err();
        assert!(matches!(empty, DatasetError::Empty { globbed: true, .. }));
    }

    #[test]
    fn what_is_not_a_plain_file_inside_is_refused_by_name() {
        use std::os::unix::{fs::symlink, net::UnixListener};
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path().join("secret"), folder.path().join("link")).unwrap();
        let error = scan(&data(&[folder.path()], &[])).unwrap_err().to_string();
        assert!(error.contains("link") && error.contains("leads out of the folder"), "{error}");
        fs::remove_file(folder.path().join("link")).unwrap();
        let _socket = UnixListener::bind(folder.path().join("socket")).unwrap();
        let error = scan(&data(&[folder.path()], &[])).unwrap_err();
        assert!(matches!(error, DatasetError::NotAFile(_)), "{error}");
        let upward = folder.path().join("..");
        assert!(matches!(scan(&data(&[&upward], &[])), Err(DatasetError::UpwardPath(_))));
        assert!(matches!(scan(&data(&[Path::new("/nowhere")], &[])), Err(DatasetError::Read { .. })));
    }
}
