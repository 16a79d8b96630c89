//! A folder of blobs.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing::warn;

use crate::{
    blob::{
        BlobError, BlobReader, BlobWriter, PieceManifest,
        layout::{self, Layout, Stamp},
    },
    durable::{self, Context, FileError},
    id::BlobId,
};

/// How much a store may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobLimits {
    /// Most bytes of all blobs and transfers together; none: no limit but the disk.
    pub quota_bytes: Option<u64>,
    /// What must stay free on the file system.
    pub free_bytes_min: u64,
}

impl BlobLimits {
    /// What stays free unless it is said otherwise.
    pub const FREE_BYTES_MIN_DEFAULT: u64 = 256 << 20;
}

impl Default for BlobLimits {
    fn default() -> Self {
        Self { quota_bytes: None, free_bytes_min: Self::FREE_BYTES_MIN_DEFAULT }
    }
}

/// A blob of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlobInfo {
    /// Its name.
    pub id: BlobId,
    /// Its length.
    pub size_bytes: u64,
}

/// A folder of blobs; cheap to clone, usable from any thread. Its folder belongs to one process.
///
/// Calls read and write files, and those that add a blob wait for the disk: keep them off an async runtime's threads.
#[derive(Clone, Debug)]
pub struct BlobStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    layout: Layout,
    limits: BlobLimits,
    state: Mutex<State>,
    /// Held while names in the folders of finished blobs change; `state` is never held that long.
    naming: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    blobs: HashMap<BlobId, Entry>,
    transfers: HashMap<BlobId, Transfer>,
    /// Sum of what calls of `put_*` are writing now.
    incoming_bytes: u64,
}

#[derive(Debug)]
struct Entry {
    size_bytes: u64,
    /// What the file looked like when all of it was last checked by this process.
    checked: Option<Stamp>,
}

#[derive(Debug)]
struct Transfer {
    size_bytes: u64,
    has_writer: bool,
}

impl State {
    fn used_bytes(&self) -> u64 {
        let blobs = self.blobs.values().map(|entry| entry.size_bytes);
        let transfers = self.transfers.values().map(|transfer| transfer.size_bytes);
        blobs.chain(transfers).sum::<u64>() + self.incoming_bytes
    }
}

impl BlobStore {
    /// Opens the store in `folder`, which is made if need be. Leftovers of an unclean stop are cleared, unfinished
    /// transfers are kept, and what is plainly damaged goes into quarantine.
    pub fn open(folder: &Path, limits: BlobLimits) -> Result<Self, BlobError> {
        let layout = Layout::create(folder)?;
        let shared = Shared { layout, limits, state: Mutex::default(), naming: Mutex::default() };
        let store = Self(Arc::new(shared));
        for shard in store.layout().shards()? {
            store.scan_shard(&shard)?;
        }
        store.scan_partial()?;
        Ok(store)
    }

    /// Whether the blob is here, whole.
    pub fn has(&self, id: BlobId) -> bool {
        self.state().blobs.contains_key(&id)
    }

    /// The blob's size in bytes, if it is here.
    pub fn size(&self, id: BlobId) -> Option<u64> {
        self.state().blobs.get(&id).map(|entry| entry.size_bytes)
    }

    /// All blobs, by name.
    pub fn list(&self) -> Vec<BlobInfo> {
        let state = self.state();
        let info = |(&id, entry): (&BlobId, &Entry)| BlobInfo { id, size_bytes: entry.size_bytes };
        let mut blobs: Vec<_> = state.blobs.iter().map(info).collect();
        blobs.sort();
        blobs
    }

    /// Bytes of all blobs and transfers together.
    pub fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    /// Bytes free on the file system.
    pub fn free_bytes(&self) -> Result<u64, BlobError> {
        Ok(self.layout().free_bytes()?)
    }

    /// The blob's pieces.
    pub fn manifest(&self, id: BlobId) -> Result<PieceManifest, BlobError> {
        Ok(self.reader(id)?.manifest)
    }

    /// Adds bytes from memory; they are durable when this returns.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<BlobId, BlobError> {
        self.put(bytes, bytes.len() as u64, Path::new("bytes in memory"))
    }

    /// Adds a copy of a file; it is durable when this returns.
    pub fn put_file(&self, path: &Path) -> Result<BlobId, BlobError> {
        let file = File::open(path).context("open", path)?;
        let size_bytes = file.metadata().context("look at", path)?.len();
        self.put(file, size_bytes, path)
    }

    fn put(&self, source: impl Read, size_bytes: u64, path: &Path) -> Result<BlobId, BlobError> {
        let _incoming = self.reserve(size_bytes)?;
        let full = |error| self.explain_full(error, size_bytes);
        let folder = &self.layout().partial;
        let mut file = tempfile::Builder::new()
            .prefix("put-")
            .tempfile_in(folder)
            .context("write in", folder)
            .map_err(full)?;
        layout::preallocate(file.as_file(), size_bytes).context("write in", folder).map_err(full)?;
        let manifest = PieceManifest::of_reader_into(source, size_bytes, |piece| file.write_all(piece))
            .context("copy", path)
            .map_err(full)?;
        let id = manifest.id();
        if !self.has(id) {
            durable::sync_file(file.as_file(), file.path()).map_err(full)?;
            // From here on the file is the store's to keep or to clear.
            let (file, temporary) =
                file.keep().map_err(|error| FileError::new("keep", folder, error.error))?;
            self.install(id, &manifest, &file, &temporary).map_err(|error| {
                // The first error is the one to report; what is left is cleared at the next start.
                let _ = layout::remove_file(&temporary);
                error
            })?;
        }
        Ok(id)
    }

    /// Starts the transfer of a blob from elsewhere, or goes on with one that was interrupted. Pieces that an earlier
    /// writer left are hashed again before they count.
    pub fn writer(&self, manifest: PieceManifest) -> Result<BlobWriter, BlobError> {
        let (id, size_bytes) = (manifest.id(), manifest.size_bytes());
        let known = {
            let mut state = self.state();
            if state.blobs.contains_key(&id) {
                return Err(BlobError::Present { id });
            }
            match state.transfers.get_mut(&id) {
                Some(transfer) if transfer.has_writer => return Err(BlobError::Busy { id }),
                Some(transfer) => {
                    transfer.has_writer = true;
                    true
                }
                None => {
                    self.check_room(&state, size_bytes)?;
                    state.transfers.insert(id, Transfer { size_bytes, has_writer: true });
                    false
                }
            }
        };
        let writer = BlobWriter::open(self.clone(), id, manifest);
        writer.map_err(|error| {
            if known {
                self.release_transfer(id);
            } else {
                self.state().transfers.remove(&id);
                self.clear_partial(id);
            }
            self.explain_full(error, size_bytes)
        })
    }

    /// Goes on with an unfinished transfer, by the manifest that was kept with it.
    pub fn resume(&self, id: BlobId) -> Result<BlobWriter, BlobError> {
        if !self.state().transfers.contains_key(&id) {
            return Err(BlobError::NotFound { id });
        }
        match layout::read_manifest(&self.layout().partial_place(id).pieces, id)? {
            Ok(manifest) => self.writer(manifest),
            Err(_) => {
                self.discard_partial(id)?;
                Err(BlobError::NotFound { id })
            }
        }
    }

    /// Transfers that are not finished, by name.
    pub fn partials(&self) -> Vec<BlobInfo> {
        let state = self.state();
        let info = |(&id, transfer): (&BlobId, &Transfer)| BlobInfo { id, size_bytes: transfer.size_bytes };
        let mut transfers: Vec<_> = state.transfers.iter().map(info).collect();
        transfers.sort();
        transfers
    }

    /// Gives up an unfinished transfer and its space; false if there is none.
    pub fn discard_partial(&self, id: BlobId) -> Result<bool, BlobError> {
        match self.state().transfers.get(&id) {
            None => return Ok(false),
            Some(transfer) if transfer.has_writer => return Err(BlobError::Busy { id }),
            Some(_) => {}
        }
        self.clear_partial(id);
        self.state().transfers.remove(&id);
        Ok(true)
    }

    /// Opens a blob to read its pieces.
    pub fn reader(&self, id: BlobId) -> Result<BlobReader, BlobError> {
        if !self.has(id) {
            return Err(BlobError::NotFound { id });
        }
        let place = self.layout().place(id);
        let opened = (|| {
            let file = File::open(&place.data).context("open", &place.data)?;
            let stamp = Stamp::of(&file, &place.data)?;
            Ok((file, stamp, layout::read_manifest(&place.pieces, id)?))
        })();
        match opened {
            Ok((file, stamp, Ok(manifest))) => {
                Ok(BlobReader { store: self.clone(), id, manifest, file, stamp })
            }
            Ok((_, stamp, Err(problem))) => Err(self.quarantine(id, Some(stamp), problem)),
            Err(error) if FileError::is_missing(&error) && self.has(id) => {
                Err(self.quarantine(id, None, "its file is gone".to_owned()))
            }
            Err(error) if error.is_missing() => Err(BlobError::NotFound { id }),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads one piece; see [`BlobReader::read_piece`].
    pub fn read_piece(&self, id: BlobId, index: u32) -> Result<Vec<u8>, BlobError> {
        self.reader(id)?.read_piece(index)
    }

    /// Opens a blob's data after checking all of it. Once in the life of a process is enough, unless the file's length
    /// or time of change has moved since.
    pub fn open_verified(&self, id: BlobId) -> Result<File, BlobError> {
        let reader = self.reader(id)?;
        if self.state().blobs.get(&id).and_then(|entry| entry.checked) != Some(reader.stamp) {
            reader.verify()?;
            if let Some(entry) = self.state().blobs.get_mut(&id) {
                entry.checked = Some(reader.stamp);
            }
        }
        Ok(reader.file)
    }

    /// The path of a blob's data, checked as by [`BlobStore::open_verified`]. Read-only, and good until the blob is
    /// removed.
    pub fn verified_path(&self, id: BlobId) -> Result<PathBuf, BlobError> {
        self.open_verified(id)?;
        Ok(self.layout().place(id).data)
    }

    /// Gives a checked blob another name on this machine, replacing what stands there: a hard link, or a copy on another
    /// file system. The file is read-only, because a link shares its bytes with the store.
    pub fn link_or_copy_to(&self, id: BlobId, path: &Path) -> Result<(), BlobError> {
        let source = self.verified_path(id)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        // A name of its own first, so that `path` changes at once and never in part.
        let temporary = tempfile::Builder::new()
            .prefix(".linking-")
            .make_in(folder, |temporary| match fs::hard_link(&source, temporary) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    fs::copy(&source, temporary).and_then(|_| File::open(temporary)?.sync_all())
                }
                other => other,
            })
            .context("write in", folder)?;
        temporary.persist(path).map_err(|error| FileError::new("rename to", path, error.error))?;
        Ok(durable::sync_folder(folder)?)
    }

    /// Removes a blob; false if it is not here. Whether anyone still needs it is the caller's to know.
    pub fn remove(&self, id: BlobId) -> Result<bool, BlobError> {
        let _naming = self.naming();
        if self.state().blobs.remove(&id).is_none() {
            return Ok(false);
        }
        let place = self.layout().place(id);
        // The data first: a manifest alone is cleared at the next start.
        layout::remove_file(&place.data)?;
        layout::remove_file(&place.pieces)?;
        durable::sync_folder(&place.folder)?;
        Ok(true)
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.0.layout
    }

    /// Puts a synced and checked file in its place. The manifest goes first, so that data in place is always complete.
    pub(super) fn install(
        &self,
        id: BlobId,
        manifest: &PieceManifest,
        file: &File,
        path: &Path,
    ) -> Result<(), BlobError> {
        let full = |error| self.explain_full(error, manifest.size_bytes());
        let _naming = self.naming();
        let place = self.layout().place(id);
        layout::protect(file).context("protect", path)?;
        let stamp = Stamp::of(file, path)?;
        durable::create_folder(&place.folder).map_err(full)?;
        durable::write_atomically(&place.pieces, &manifest.encode()).map_err(full)?;
        durable::rename(path, &place.data).map_err(full)?;
        self.register(id, manifest.size_bytes(), stamp);
        Ok(())
    }

    /// From here on the blob is here: its files are durable in their places, and were checked as `stamp` says.
    pub(super) fn register(&self, id: BlobId, size_bytes: u64, stamp: Stamp) {
        self.state().blobs.insert(id, Entry { size_bytes, checked: Some(stamp) });
    }

    /// Takes a damaged blob out of the store, unless another file has taken the place of the one that was read.
    pub(super) fn quarantine(&self, id: BlobId, read: Option<Stamp>, problem: String) -> BlobError {
        let _naming = self.naming();
        let place = self.layout().place(id);
        let replaced = read.is_some_and(|stamp| !stamp.is_at(&place.data));
        let quarantine = if replaced {
            place.data
        } else {
            self.state().blobs.remove(&id);
            match self.layout().quarantine(id) {
                Ok(kept) => kept,
                Err(error) => return error.into(),
            }
        };
        warn!(blob = %id, problem, "damaged on this disk");
        BlobError::Corrupt { id, problem, quarantine }
    }

    /// The transfer has no writer any more, but its pieces stay.
    pub(super) fn release_transfer(&self, id: BlobId) {
        if let Some(transfer) = self.state().transfers.get_mut(&id) {
            transfer.has_writer = false;
        }
    }

    /// The transfer has come to its end.
    pub(super) fn end_transfer(&self, id: BlobId) {
        self.clear_partial(id);
        self.state().transfers.remove(&id);
    }

    /// Says that the disk is full where that is the reason.
    pub(super) fn explain_full(&self, error: impl Into<BlobError>, needed_bytes: u64) -> BlobError {
        match error.into() {
            BlobError::File(error) if error.is_full() => BlobError::Full {
                folder: self.layout().root.clone(),
                needed_bytes,
                free_bytes: self.layout().free_bytes().unwrap_or(0),
                free_bytes_min: self.0.limits.free_bytes_min,
            },
            other => other,
        }
    }

    fn check_room(&self, state: &State, needed_bytes: u64) -> Result<(), BlobError> {
        let folder = || self.layout().root.clone();
        let (used_bytes, BlobLimits { quota_bytes, free_bytes_min }) = (state.used_bytes(), self.0.limits);
        if let Some(quota_bytes) = quota_bytes
            && used_bytes.saturating_add(needed_bytes) > quota_bytes
        {
            return Err(BlobError::Quota { folder: folder(), needed_bytes, used_bytes, quota_bytes });
        }
        let free_bytes = self.free_bytes()?;
        if needed_bytes.saturating_add(free_bytes_min) > free_bytes {
            return Err(BlobError::Full { folder: folder(), needed_bytes, free_bytes, free_bytes_min });
        }
        Ok(())
    }

    pub(super) fn reserve(&self, size_bytes: u64) -> Result<Incoming<'_>, BlobError> {
        let mut state = self.state();
        self.check_room(&state, size_bytes)?;
        state.incoming_bytes += size_bytes;
        Ok(Incoming { store: self, size_bytes })
    }

    fn clear_partial(&self, id: BlobId) {
        let place = self.layout().partial_place(id);
        // The manifest last: as long as it is there, the next start knows the rest as this transfer's.
        for path in [&place.data, &place.have, &place.pieces] {
            if let Err(error) = layout::remove_file(path) {
                warn!(%error, "a leftover stays until the next start");
            }
        }
    }

    fn scan_shard(&self, shard: &Path) -> Result<(), BlobError> {
        for name in layout::file_names(shard)? {
            let path = shard.join(&name);
            let (stem, kind) = name.rsplit_once('.').unwrap_or((&name, ""));
            match (stem.parse::<BlobId>(), kind) {
                (Ok(id), "data") if self.layout().place(id).data == path => self.scan_blob(id)?,
                (Ok(_), "pieces") if path.with_extension("data").exists() => {}
                _ if kind == "pieces" || name.starts_with(".writing-") => layout::remove_file(&path)?,
                _ => warn!(path = %path.display(), "not a blob; left alone"),
            }
        }
        Ok(())
    }

    fn scan_blob(&self, id: BlobId) -> Result<(), BlobError> {
        let place = self.layout().place(id);
        let size_bytes = fs::metadata(&place.data).context("look at", &place.data)?.len();
        let problem = match layout::read_manifest(&place.pieces, id) {
            Ok(Ok(manifest)) if manifest.size_bytes() == size_bytes => {
                self.state().blobs.insert(id, Entry { size_bytes, checked: None });
                return Ok(());
            }
            Ok(Ok(manifest)) => format!("it has {size_bytes} bytes instead of {}", manifest.size_bytes()),
            Ok(Err(problem)) => problem,
            Err(error) => error.to_string(),
        };
        match self.quarantine(id, None, problem) {
            BlobError::Corrupt { .. } => Ok(()),
            error => Err(error),
        }
    }

    fn scan_partial(&self) -> Result<(), BlobError> {
        let names = layout::file_names(&self.layout().partial)?;
        for name in &names {
            let kept = name.rsplit_once('.').and_then(|(stem, kind)| {
                let id = stem.parse::<BlobId>().ok().filter(|&id| !self.has(id))?;
                let manifest =
                    layout::read_manifest(&self.layout().partial_place(id).pieces, id).ok()?.ok()?;
                matches!(kind, "data" | "pieces" | "have").then_some((id, manifest.size_bytes()))
            });
            match kept {
                Some((id, size_bytes)) => {
                    self.state().transfers.insert(id, Transfer { size_bytes, has_writer: false });
                }
                None => layout::remove_file(&self.layout().partial.join(name))?,
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single step, so a panic elsewhere leaves it sound.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn naming(&self) -> MutexGuard<'_, ()> {
        self.0.naming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Space that a call of `put_*` is filling.
pub(super) struct Incoming<'a> {
    store: &'a BlobStore,
    size_bytes: u64,
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        self.store.state().incoming_bytes -= self.size_bytes;
    }
}
