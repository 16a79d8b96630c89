//! A restore: a state folder out of a backup.
//!
//! Everything is first made whole, checked and synced in a folder of its own inside the target, under the target's lock.
//! Then that folder gets another name, and its content is moved up. While there is a folder of that name no coordinator
//! starts, so a restore that is cut off is never taken for a state; one more restore mends it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use hatchery_common::{
    blob::{BlobLimits, BlobStore},
    digest::Hasher,
    durable::{self, FileError, FolderLock},
    faults,
    id::{BlobId, Epoch},
    time::Timestamp,
    tls::Authority,
};
use hatchery_scheduler::{Cluster, What, restored};
use serde::Serialize;

use super::{
    AdminError, Watcher, advance,
    archive::{Entry, Reader, name_of},
    manifest::{BlobPart, FORMAT, MANIFEST_BYTES_MAX, MANIFEST_NAME, Manifest, Part},
    parts::{AUTHORITY_FOLDER, BLOBS_FOLDER, DATABASE_FILE, UNFINISHED_FOLDER, named_blobs},
};
use crate::store::{SqliteStore, Store};

/// Where a state is made whole.
pub(super) const STAGING_FOLDER: &str = ".restoring";
/// What was there before, put aside: this and the time of the restore.
const ASIDE_PREFIX: &str = "before-restore-";
const LOCK_FILE: &str = "lock";
/// Copied at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// Longest file of the authority.
const PEM_BYTES_MAX: u64 = 64 << 10;
/// Blobs up to this size, in bytes, are gathered and brought to the disk together.
const SMALL_BLOB_BYTES: u64 = 64 << 10;
/// Most blobs that are gathered.
const SMALL_BLOBS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RestoreSummary {
    pub folder: PathBuf,
    /// When the backup was made.
    pub made_at: Timestamp,
    /// The number of the last event in the backup.
    pub last_event: u64,
    pub jobs: usize,
    /// How many of them had a lease, which is over now.
    pub leases_ended: usize,
    pub nodes: usize,
    pub checkpoints: usize,
    /// How many blobs came with it.
    pub blobs: usize,
    /// How many blobs the records name that did not.
    pub blobs_missing: usize,
    /// Jobs go on with epochs above this one.
    pub epoch_floor: Epoch,
    /// Where that is now which was in the folder before.
    pub put_aside: Option<PathBuf>,
}

/// Restores the backup `file` as the state in `folder`, which no coordinator may be running on. If it is not empty it is
/// refused, or with `replace` its content is put aside within it.
pub fn restore(
    file: &Path,
    folder: &Path,
    replace: bool,
    watcher: &mut dyn Watcher,
) -> Result<RestoreSummary, AdminError> {
    // A file that is no backup should not leave a folder behind, and a folder that will not do is told at once.
    let checked = if folder.exists() { None } else { Some(Reader::open(file, watcher)?) };
    durable::create_folder(folder)?;
    let _lock = FolderLock::acquire(folder)?;
    let old = content_of(folder)?;
    if let (Some(found), false) = (old.first(), replace) {
        return Err(AdminError::NotEmpty { folder: folder.to_owned(), found: found.clone() });
    }
    let mut reader = match checked {
        Some(reader) => reader,
        None => Reader::open(file, watcher)?,
    };
    let (staging, unfinished) = (folder.join(STAGING_FOLDER), folder.join(UNFINISHED_FOLDER));
    clear(&staging)?;
    durable::create_folder(&staging)?;
    let made = Staging { file, folder: &staging, found: Found::default() }.fill(&mut reader, watcher);
    let mut summary = made.inspect_err(|_| {
        // The first error is the one to tell, and nothing was touched yet: the folder is what it was.
        let _ = clear(&staging);
    })?;
    watcher.phase("moving it into place", None);
    clear(&unfinished)?;
    faults::strikes("admin::step");
    durable::rename(&staging, &unfinished)?;
    if !old.is_empty() {
        let aside = folder.join(format!("{ASIDE_PREFIX}{}", Timestamp::now().0));
        durable::create_folder(&aside)?;
        move_all(&old, folder, &aside)?;
        summary.put_aside = Some(aside);
    }
    move_all(&names(&unfinished)?, &unfinished, folder)?;
    faults::strikes("admin::step");
    clear(&unfinished)?;
    durable::sync_folder(folder)?;
    faults::strikes("admin::step");
    folder.clone_into(&mut summary.folder);
    Ok(summary)
}

/// What of a folder is in the way of a restore.
fn content_of(folder: &Path) -> Result<Vec<String>, FileError> {
    let mut names = names(folder)?;
    let own = [LOCK_FILE, STAGING_FOLDER, UNFINISHED_FOLDER];
    names.retain(|name| !own.contains(&name.as_str()) && !name.starts_with(ASIDE_PREFIX));
    Ok(names)
}

fn names(folder: &Path) -> Result<Vec<String>, FileError> {
    let failed = |error| FileError::new("list", folder, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().into_string();
        names
            .push(name.map_err(|name| failed(io::Error::other(format!("{} is not UTF-8", name.display()))))?);
    }
    names.sort_unstable();
    Ok(names)
}

fn clear(folder: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", folder, error)),
        _ => Ok(()),
    }
}

fn move_all(names: &[String], from: &Path, to: &Path) -> Result<(), FileError> {
    names.iter().try_for_each(|name| {
        faults::strikes("admin::step");
        durable::rename(&from.join(name), &to.join(name))
    })
}

/// What came out of the file.
#[derive(Default)]
struct Found {
    parts: Vec<Part>,
    blobs: Vec<BlobPart>,
    manifest: Option<Manifest>,
    /// Small blobs that are not yet in the store.
    small: Vec<(BlobId, Vec<u8>)>,
}

struct Staging<'a> {
    file: &'a Path,
    folder: &'a Path,
    found: Found,
}

impl Staging<'_> {
    /// Takes everything out of the backup, checks it, and makes it fit to go on from.
    fn fill(mut self, reader: &mut Reader, watcher: &mut dyn Watcher) -> Result<RestoreSummary, AdminError> {
        let blobs = BlobStore::open(&self.folder.join(BLOBS_FOLDER), BlobLimits::default())?;
        durable::create_folder(&self.folder.join(AUTHORITY_FOLDER))?;
        watcher.phase("extracting the backup", self.file.metadata().ok().map(|metadata| metadata.len()));
        for entry in reader.entries().map_err(|error| self.unreadable(error))? {
            let mut entry = entry.map_err(|error| self.damaged(error.to_string()))?;
            self.take(&mut entry, &blobs, watcher)?;
        }
        self.store_small(&blobs)?;
        let manifest = self.check()?;
        self.check_authority()?;
        self.go_on(&manifest, &blobs)
    }

    fn take(
        &mut self,
        entry: &mut Entry<'_>,
        blobs: &BlobStore,
        watcher: &mut dyn Watcher,
    ) -> Result<(), AdminError> {
        let name = name_of(entry).map_err(|why| self.damaged(why))?;
        if self.found.manifest.is_some() {
            return Err(self.damaged(format!("{name:?} follows its manifest")));
        }
        let size_bytes = entry.size();
        // Names are compared with those that there are, and never become paths themselves.
        let key = format!("{AUTHORITY_FOLDER}/{}", Authority::KEY_FILE);
        let certificate = format!("{AUTHORITY_FOLDER}/{}", Authority::CERTIFICATE_FILE);
        if name == MANIFEST_NAME {
            self.found.manifest = Some(self.manifest(entry)?);
        } else if name == DATABASE_FILE {
            self.part(DATABASE_FILE, SqliteStore::BYTES_MAX, entry, watcher)?;
        } else if name == key {
            self.part(&key, PEM_BYTES_MAX, entry, watcher)?;
        } else if name == certificate {
            self.part(&certificate, PEM_BYTES_MAX, entry, watcher)?;
        } else if let Some(id) = name.strip_prefix("blobs/").and_then(|id| id.parse().ok()) {
            self.blob(id, entry, blobs)?;
            advance(watcher, size_bytes)?;
        } else {
            return Err(self.damaged(format!("it contains {name:?}, which is not part of a backup")));
        }
        Ok(())
    }

    /// A file as it stands. A name that comes twice finds its file there.
    fn part(
        &mut self,
        name: &str,
        bytes_max: u64,
        entry: &mut Entry<'_>,
        watcher: &mut dyn Watcher,
    ) -> Result<(), AdminError> {
        let size_bytes = entry.size();
        if size_bytes > bytes_max {
            return Err(self.damaged(format!("{name} has {size_bytes} bytes, more than {bytes_max}")));
        }
        let path = self.folder.join(name);
        let unwritable = |error| FileError::new("write", &path, error);
        let mut file =
            File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(unwritable)?;
        let (mut hasher, mut buffer) = (Hasher::default(), vec![0; BUFFER_BYTES]);
        loop {
            let count = entry.read(&mut buffer).map_err(|error| self.unreadable(error))?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(unwritable)?;
            advance(watcher, count as u64)?;
        }
        durable::sync_file(&file, &path)?;
        self.found.parts.push(Part { name: name.to_owned(), size_bytes, blake3: hasher.digest() });
        Ok(())
    }

    /// A blob, whose name says what it must be.
    fn blob(&mut self, id: BlobId, entry: &mut Entry<'_>, blobs: &BlobStore) -> Result<(), AdminError> {
        let size_bytes = entry.size();
        self.found.blobs.push(BlobPart { id, size_bytes });
        if size_bytes > SMALL_BLOB_BYTES {
            let stored = blobs.put_reader(&mut *entry, size_bytes, self.file)?;
            return self.check_blob(id, stored);
        }
        let mut bytes = Vec::with_capacity(size_bytes as usize);
        entry.read_to_end(&mut bytes).map_err(|error| self.unreadable(error))?;
        self.found.small.push((id, bytes));
        if self.found.small.len() >= SMALL_BLOBS { self.store_small(blobs) } else { Ok(()) }
    }

    fn store_small(&mut self, blobs: &BlobStore) -> Result<(), AdminError> {
        let (ids, bytes): (Vec<_>, Vec<_>) = self.found.small.drain(..).unzip();
        let stored = blobs.put_many(&bytes)?;
        ids.into_iter().zip(stored).try_for_each(|(id, stored)| self.check_blob(id, stored))
    }

    fn check_blob(&self, id: BlobId, stored: BlobId) -> Result<(), AdminError> {
        if id == stored { Ok(()) } else { Err(self.damaged(format!("blob {id} does not match its name"))) }
    }

    fn manifest(&self, entry: &mut Entry<'_>) -> Result<Manifest, AdminError> {
        let mut bytes = Vec::new();
        entry.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| self.unreadable(error))?;
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            return Err(self.damaged(format!("its manifest is larger than {MANIFEST_BYTES_MAX} bytes")));
        }
        let unfit = |error: serde_json::Error| self.damaged(format!("its manifest: {error}"));
        // The format first: whatever else a newer one says cannot be read here.
        let says: Says = serde_json::from_slice(&bytes).map_err(unfit)?;
        if says.format > FORMAT {
            return Err(AdminError::TooNew {
                path: self.file.to_owned(),
                found: says.format,
                known: FORMAT,
                version: says.version,
            });
        }
        serde_json::from_slice(&bytes).map_err(unfit)
    }

    /// Everything that the manifest names is here, is what it says, and there is nothing else.
    fn check(&mut self) -> Result<Manifest, AdminError> {
        let Some(manifest) = self.found.manifest.take() else {
            return Err(self.damaged("it has no manifest".to_owned()));
        };
        if self.found.parts.len() != 3 || manifest.parts != self.found.parts {
            return Err(self.damaged("its state does not match its manifest".to_owned()));
        }
        let ids: BTreeSet<_> = self.found.blobs.iter().map(|blob| blob.id).collect();
        if manifest.blobs != self.found.blobs || ids.len() != manifest.blobs.len() {
            return Err(self.damaged("its blobs do not match its manifest".to_owned()));
        }
        Ok(manifest)
    }

    /// The key and the certificate are one authority's.
    fn check_authority(&self) -> Result<(), AdminError> {
        let folder = self.folder.join(AUTHORITY_FOLDER);
        Authority::create_or_load(&folder)?;
        Ok(durable::sync_folder(&folder)?)
    }

    /// Opens the database, which checks it, and enters what a restored state goes on with.
    fn go_on(&self, manifest: &Manifest, blobs: &BlobStore) -> Result<RestoreSummary, AdminError> {
        let mut store = SqliteStore::open(&self.folder.join(DATABASE_FILE))?;
        let before = store.load()?;
        if before.last_event != manifest.last_event {
            let why = format!("its last event is {}, not {}", before.last_event, manifest.last_event);
            return Err(self.damaged(why));
        }
        let last = store.events(before.last_event.saturating_sub(1), 1)?;
        let last_event_at = last.last().map_or(manifest.made_at, |stored| stored.event.at);
        let events = restored(&before, last_event_at.max(manifest.made_at), Timestamp::now());
        let floor = events.iter().find_map(|event| match &event.what {
            What::Restored { epoch_floor, .. } => Some(*epoch_floor),
            _ => None,
        });
        store.commit(&events)?;
        // Closed, it is one file again.
        drop(store);
        durable::sync_folder(self.folder)?;
        Ok(summary(manifest, &before, blobs, floor.unwrap_or_default()))
    }

    fn damaged(&self, why: String) -> AdminError {
        AdminError::Damaged { path: self.file.to_owned(), why }
    }

    fn unreadable(&self, error: io::Error) -> AdminError {
        FileError::new("read", self.file, error).into()
    }
}

fn summary(manifest: &Manifest, cluster: &Cluster, blobs: &BlobStore, epoch_floor: Epoch) -> RestoreSummary {
    RestoreSummary {
        folder: PathBuf::new(),
        made_at: manifest.made_at,
        last_event: manifest.last_event,
        jobs: cluster.jobs.len(),
        leases_ended: cluster.jobs.values().filter(|job| job.lease.is_some()).count(),
        nodes: cluster.nodes.len(),
        checkpoints: cluster.checkpoints.len(),
        blobs: manifest.blobs.len(),
        blobs_missing: named_blobs(cluster).keys().filter(|id| !blobs.has(**id)).count(),
        epoch_floor,
        put_aside: None,
    }
}

/// What a manifest of any format says.
#[derive(serde::Deserialize)]
struct Says {
    format: u32,
    #[serde(default)]
    version: String,
}
