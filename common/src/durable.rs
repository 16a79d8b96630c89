//! Files that are there after a power cut: whole, under their name, or not at all.
//!
//! The order is always the same: temporary file in the same folder, fsync, rename, fsync of the folder. With the feature
//! `failpoints`, tests can stop or fail between any two of these steps.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::faults;

/// Mode of files that others on the machine may read.
const MODE_PUBLIC: u32 = 0o644;
/// Mode of files that hold a secret.
const MODE_SECRET: u32 = 0o600;
/// Mode of folders.
const MODE_FOLDER: u32 = 0o700;
/// Name of the file that is locked while a process owns a folder.
const LOCK_FILE: &str = "lock";
/// Longest content of a lock file that is read back.
const LOCK_FILE_BYTES_MAX: u64 = 32;

/// What could not be done with which file, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried, as a verb: `read`, `write`.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

impl FileError {
    /// Names the action and the path.
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }

    /// Whether the disk, or the user's share of it, is full.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Adds the action and the path to a system error.
pub(crate) trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|source| FileError::new(action, path, source))
    }
}

/// A point between two steps at which tests may fail the write.
fn fault(point: &str, path: &Path) -> Result<(), FileError> {
    if faults::strikes(point) {
        return Err(FileError::new("write", path, io::Error::other("injected fault")));
    }
    Ok(())
}

/// Writes a file that others may read; after it returns, the file is durable under its name. What stood there before is
/// replaced at once, never in part.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_atomically_with(path, |file| file.write_all(bytes))
}

/// The same for what is too large to be held in memory: `write` writes the content.
pub fn write_atomically_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), FileError> {
    write_with_mode(path, MODE_PUBLIC, write)
}

/// The same for a secret: only the owner may read it, from its first byte on.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_secret_with(path, |file| file.write_all(bytes))
}

/// The same for what is too large to be held in memory twice: `write` writes the content.
pub fn write_secret_with(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), FileError> {
    write_with_mode(path, MODE_SECRET, write)
}

fn write_with_mode(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), FileError> {
    let folder = folder_of(path);
    let mut file = tempfile::Builder::new()
        .prefix(".writing-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)
        .context("write in", folder)?;
    write(file.as_file_mut()).context("write", path)?;
    sync_file(file.as_file(), path)?;
    fault("durable::before_rename", path)?;
    file.persist(path).map_err(|error| FileError::new("rename to", path, error.error))?;
    sync_folder(folder)
}

/// Brings a file's bytes and length to the disk; `path` is for the error.
pub fn sync_file(file: &File, path: &Path) -> Result<(), FileError> {
    if faults::strikes("mutant::fsync_order") {
        return sync_later(file, path);
    }
    fault("durable::before_sync", path)?;
    file.sync_all().context("sync", path)
}

/// What nobody should do: whoever waits for the disk goes on, and hears nothing of its errors.
fn sync_later(file: &File, path: &Path) -> Result<(), FileError> {
    let (file, path) = (file.try_clone().context("sync", path)?, path.to_owned());
    std::thread::spawn(move || fault("durable::before_sync", &path).map(|()| file.sync_all()));
    Ok(())
}

/// Moves a file to another name on the same file system, durably. The file itself must have been synced before.
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fault("durable::before_rename", to)?;
    fs::rename(from, to).context("rename to", to)?;
    sync_folder(folder_of(to))
}

/// Brings the names in a folder to the disk.
pub fn sync_folder(folder: &Path) -> Result<(), FileError> {
    fault("durable::before_folder_sync", folder)?;
    File::open(folder).and_then(|folder| folder.sync_all()).context("sync", folder)
}

/// Makes a folder, and those above it, that only the owner may enter, durably. One that is there already is fine.
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = folder_of(path);
    create_folder(parent)?;
    match DirBuilder::new().mode(MODE_FOLDER).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.context("create the folder", path),
    }?;
    sync_folder(parent)
}

/// Reads a file whole, if it has no more than `bytes_max`.
pub fn read_limited(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes))
        .context("read", path)?;
    if bytes.len() as u64 > bytes_max {
        let reason = format!("it is larger than {bytes_max} bytes");
        return Err(FileError::new("read", path, io::Error::new(io::ErrorKind::FileTooLarge, reason)));
    }
    Ok(bytes)
}

/// The folder that a path lies in; the current one for a bare name.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Why a folder cannot be owned.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process owns it.
    #[error(
        "{} is in use by {}; stop that process first, or choose another folder",
        folder.display(),
        Holder(*pid)
    )]
    Held {
        /// The folder.
        folder: PathBuf,
        /// Its owner, if the lock file says.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

struct Holder(Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

/// Sole ownership of a folder until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
}

impl FolderLock {
    /// Takes the folder, which must exist, or says which process holds it.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(LOCK_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .context("open", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The holder's number is a courtesy: without it the message is only less helpful.
                let read = file.take(LOCK_FILE_BYTES_MAX).read_to_string(&mut text);
                let pid = read.ok().and_then(|_| text.trim().parse().ok());
                return Err(LockError::Held { folder: folder.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(FileError::new("lock", &path, error).into()),
        }
        let write = file.set_len(0).and_then(|()| file.rewind());
        write.and_then(|()| writeln!(file, "{}", std::process::id())).context("write", &path)?;
        Ok(Self { file })
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that this one is just starting shares it until it is another program, and
        // would keep the lock for so long. An error changes nothing: the file is closed next.
        let _closed_next = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_whole_and_a_secret_is_only_ours() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(read_limited(&path, 3).unwrap(), b"two");
        assert_eq!(read_limited(&path, 2).unwrap_err().source.kind(), io::ErrorKind::FileTooLarge);
        write_secret(&path, b"three").unwrap();
        assert_eq!(mode(&path), MODE_SECRET);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
        let error = write_atomically(&folder.path().join("no/file"), b"").unwrap_err();
        assert!(error.is_missing() && error.to_string().contains("cannot write in"), "{error}");
    }

    #[test]
    fn folders_are_made_with_their_parents_for_us_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        create_folder(&path).unwrap();
        create_folder(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (MODE_FOLDER, MODE_FOLDER));
        fs::write(path.join("file"), "").unwrap();
        assert!(create_folder(&path.join("file")).is_err());
    }

    #[test]
    fn a_folder_has_one_owner_and_the_other_is_told_who() {
        let folder = tempfile::tempdir().unwrap();
        let held = FolderLock::acquire(folder.path()).unwrap();
        let message = FolderLock::acquire(folder.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        // As a process does that is being started.
        let shared = held.file.try_clone().unwrap();
        drop(held);
        FolderLock::acquire(folder.path()).unwrap();
        drop(shared);
    }
}
