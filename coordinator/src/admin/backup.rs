//! A backup: one file out of a state folder, whether its coordinator runs or not.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use hatchery_common::{
    blob::{BlobFault, BlobFolder},
    digest::Hasher,
    durable::{self, FileError},
    id::BlobId,
    time::Timestamp,
    tls::Authority,
};
use hatchery_scheduler::Cluster;
use serde::Serialize;

use super::{
    AdminError, Watcher, advance,
    archive::Writer,
    manifest::{BlobPart, FORMAT, MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest, Part},
    parts::{AUTHORITY_FOLDER, BLOBS_FOLDER, DATABASE_FILE, Named, check_state, named_blobs},
};
use crate::store::{SqliteStore, Store, StoreError, copy_database};

/// Copied at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// Most lost blobs that are told one by one.
const FAULTS_TOLD_MAX: usize = 20;

/// What to put into a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupOptions {
    /// The blobs that the records name, too: datasets and checkpoints.
    pub with_blobs: bool,
}

/// What was backed up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackupSummary {
    pub file: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// When it was made.
    pub made_at: Timestamp,
    /// The number of the last event in it.
    pub last_event: u64,
    pub jobs: usize,
    pub nodes: usize,
    pub checkpoints: usize,
    /// How many blobs are in it.
    pub blobs: usize,
    /// How many blobs the records name that are not in it.
    pub blobs_missing: u64,
    /// Which of those are lost or damaged, and what names them; the first few. Empty when blobs were not wanted.
    pub lost: Vec<String>,
}

/// Writes a backup of the state in `folder` to `file`, which must not be there; it is there only once it is whole and
/// durable. What can be restored from it was read back before.
pub fn backup(
    folder: &Path,
    file: &Path,
    options: BackupOptions,
    watcher: &mut dyn Watcher,
) -> Result<BackupSummary, AdminError> {
    check_state(folder)?;
    let exists = || AdminError::Exists { path: file.to_owned() };
    if file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let into = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let made_at = Timestamp::now();
    let failed = |source| FileError::new("write in", into, source);
    let scratch = tempfile::Builder::new().prefix(".backup-").tempdir_in(into).map_err(failed)?;
    let copy = scratch.path().join(DATABASE_FILE);
    watcher.phase("copying the database", None);
    let database = folder.join(DATABASE_FILE);
    copy_database(&database, &copy)?;
    // Only what can be opened, checked and read is worth keeping. The copy is this process's own.
    let cluster =
        SqliteStore::open(&copy).and_then(|mut store| store.load()).map_err(|error| match error {
            StoreError::Corrupt { detail, .. } => StoreError::Corrupt { path: database, detail },
            error => error,
        })?;
    advance(watcher, 0)?;

    let temporary = tempfile::NamedTempFile::new_in(scratch.path()).map_err(failed)?;
    let writing = temporary.reopen().map_err(failed)?;
    let named = named_blobs(&cluster);
    let mut writer = Backup { writer: Writer::new(writing, made_at), file, watcher };
    let mut manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        made_at,
        last_event: cluster.last_event,
        parts: writer.parts(folder, &copy)?,
        with_blobs: options.with_blobs,
        blobs: Vec::new(),
        blobs_missing: named.len() as u64,
    };
    let mut lost = Vec::new();
    if options.with_blobs {
        manifest.blobs = writer.blobs(&folder.join(BLOBS_FOLDER), named, &mut lost)?;
        manifest.blobs_missing -= manifest.blobs.len() as u64;
    }
    let size_bytes = writer.finish(&manifest)?;
    temporary.persist_noclobber(file).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => exists(),
        _ => FileError::new("rename to", file, error.error).into(),
    })?;
    durable::sync_folder(into)?;
    Ok(summary(file, size_bytes, &cluster, &manifest, lost))
}

fn summary(
    file: &Path,
    size_bytes: u64,
    cluster: &Cluster,
    manifest: &Manifest,
    lost: Vec<String>,
) -> BackupSummary {
    BackupSummary {
        file: file.to_owned(),
        size_bytes,
        made_at: manifest.made_at,
        last_event: manifest.last_event,
        jobs: cluster.jobs.len(),
        nodes: cluster.nodes.len(),
        checkpoints: cluster.checkpoints.len(),
        blobs: manifest.blobs.len(),
        blobs_missing: manifest.blobs_missing,
        lost,
    }
}

struct Backup<'a> {
    writer: Writer,
    /// Where it will be, for errors.
    file: &'a Path,
    watcher: &'a mut dyn Watcher,
}

impl Backup<'_> {
    /// The database and the authority.
    fn parts(&mut self, folder: &Path, database: &Path) -> Result<Vec<Part>, AdminError> {
        let mut parts = vec![(DATABASE_FILE.to_owned(), database.to_owned())];
        for file in [Authority::KEY_FILE, Authority::CERTIFICATE_FILE] {
            let path = folder.join(AUTHORITY_FOLDER).join(file);
            if !path.is_file() {
                let (folder, missing) = (folder.to_owned(), "authority with its key and certificate");
                return Err(AdminError::NoState { folder, missing });
            }
            parts.push((format!("{AUTHORITY_FOLDER}/{file}"), path));
        }
        let sizes = parts.iter().map(|(_, path)| path.metadata().map_or(0, |metadata| metadata.len()));
        self.watcher.phase("writing the state", Some(sizes.sum()));
        parts.into_iter().map(|(name, path)| self.part(name, &path)).collect()
    }

    fn part(&mut self, name: String, path: &Path) -> Result<Part, AdminError> {
        let unreadable = |error| FileError::new("read", path, error);
        let unwritable = |error| FileError::new("write", self.file, error);
        let mut source = File::open(path).map_err(|error| FileError::new("open", path, error))?;
        let size_bytes = source.metadata().map_err(unreadable)?.len();
        self.writer.begin(&name, size_bytes).map_err(unwritable)?;
        let (mut hasher, mut buffer) = (Hasher::default(), vec![0; BUFFER_BYTES]);
        loop {
            let count = source.read(&mut buffer).map_err(unreadable)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            self.writer.write(&buffer[..count]).map_err(unwritable)?;
            advance(self.watcher, count as u64)?;
        }
        self.writer.end().map_err(unwritable)?;
        Ok(Part { name, size_bytes, blake3: hasher.digest() })
    }

    /// Every blob that is whole; the others are told in `lost`.
    fn blobs(
        &mut self,
        folder: &Path,
        named: BTreeMap<BlobId, Named>,
        lost: &mut Vec<String>,
    ) -> Result<Vec<BlobPart>, AdminError> {
        self.watcher.phase("writing the blobs", Some(named.values().map(|named| named.size_bytes).sum()));
        let folder = BlobFolder::at(folder);
        let mut written = Vec::with_capacity(named.len());
        for (id, Named { size_bytes, by }) in named {
            let unwritable = |error| AdminError::from(FileError::new("write", self.file, error));
            let mark = self.writer.mark().map_err(unwritable)?;
            self.writer.begin(&format!("{BLOBS_FOLDER}/{id}"), size_bytes).map_err(unwritable)?;
            let (mut left_bytes, mut is_longer) = (size_bytes, false);
            let read = folder.read(id, |bytes| {
                let Some(left) = left_bytes.checked_sub(bytes.len() as u64) else {
                    is_longer = true;
                    return Ok(());
                };
                left_bytes = left;
                self.writer.write(bytes).map_err(unwritable)?;
                advance(self.watcher, bytes.len() as u64)
            })?;
            let why = match read {
                Ok(()) if left_bytes == 0 && !is_longer => None,
                Ok(()) => Some(format!("its size is not the {size_bytes} bytes of the records")),
                Err(BlobFault::Missing) => Some("it is missing".to_owned()),
                Err(BlobFault::Damaged(problem)) => Some(format!("it is damaged: {problem}")),
            };
            let Some(why) = why else {
                self.writer.end().map_err(unwritable)?;
                written.push(BlobPart { id, size_bytes });
                continue;
            };
            self.writer.go_back(mark).map_err(unwritable)?;
            advance(self.watcher, left_bytes)?;
            if lost.len() < FAULTS_TOLD_MAX {
                lost.push(format!("blob {} of {by}: {why}", id.short()));
            }
        }
        Ok(written)
    }

    /// Puts the manifest and the seal behind it, and syncs.
    fn finish(mut self, manifest: &Manifest) -> Result<u64, AdminError> {
        let unwritable = |error| FileError::new("write", self.file, error);
        let mut text = serde_json::to_vec_pretty(manifest).expect("numbers and text are always JSON");
        text.push(b'\n');
        if text.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(AdminError::TooLarge { bytes_max: MANIFEST_BYTES_MAX });
        }
        self.writer.begin(MANIFEST_NAME, text.len() as u64).map_err(unwritable)?;
        self.writer.write(&text).map_err(unwritable)?;
        self.writer.end().map_err(unwritable)?;
        let (file, size_bytes) = self.writer.finish().map_err(unwritable)?;
        self.watcher.phase("waiting for the disk", None);
        durable::sync_file(&file, self.file)?;
        Ok(size_bytes)
    }
}
