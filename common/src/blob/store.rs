//! A folder of blobs.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Write},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing::warn;

use crate::{
    blob::{
        BlobError, PieceManifest,
        layout::{self, Layout, Stamp},
    },
    durable::{self, Context, FileError},
    id::BlobId,
    time::BootTime,
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

/// A blob that somebody counts on. Giving the loan back counts as asking for the blob.
#[derive(Debug)]
pub struct BlobLoan {
    store: BlobStore,
    id: BlobId,
    _lent: Arc<()>,
}

impl Drop for BlobLoan {
    fn drop(&mut self) {
        self.store.size(self.id);
    }
}

#[derive(Debug)]
struct Shared {
    layout: Layout,
    limits: BlobLimits,
    state: Mutex<State>,
    /// Held while names in the folders of finished blobs change; `state` is never held that long.
    naming: Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) blobs: HashMap<BlobId, Entry>,
    pub(super) transfers: HashMap<BlobId, Transfer>,
    /// Sum of what calls of `put_*` are writing now.
    incoming_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) size_bytes: u64,
    /// What the file looked like when all of it was last checked by this process.
    pub(super) checked: Option<Stamp>,
    /// When somebody last asked for it, or brought it.
    asked_at: BootTime,
    /// Shared with whoever reads it just now.
    pub(super) lent: Arc<()>,
}

impl Entry {
    pub(super) fn new(size_bytes: u64, checked: Option<Stamp>) -> Self {
        Self { size_bytes, checked, asked_at: BootTime::now(), lent: Arc::default() }
    }

    fn is_idle_since(&self, since: BootTime) -> bool {
        self.asked_at < since && Arc::strong_count(&self.lent) == 1
    }
}

#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) size_bytes: u64,
    pub(super) has_writer: bool,
    /// When it last had a writer, as far as this process knows.
    pub(super) written_at: BootTime,
}

impl Transfer {
    pub(super) fn new(size_bytes: u64, has_writer: bool) -> Self {
        Self { size_bytes, has_writer, written_at: BootTime::now() }
    }
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

    /// Whether the blob is here, whole. Who asks may count on it for a while: see [`remove_idle`](Self::remove_idle).
    pub fn has(&self, id: BlobId) -> bool {
        self.size(id).is_some()
    }

    /// Keeps a blob from being removed as idle for as long as the loan is there; none: it is not here.
    pub fn lend(&self, id: BlobId) -> Option<BlobLoan> {
        let lent = self.state().blobs.get(&id).map(|entry| Arc::clone(&entry.lent))?;
        Some(BlobLoan { store: self.clone(), id, _lent: lent })
    }

    /// The blob's size in bytes, if it is here. Who asks may count on it for a while.
    pub fn size(&self, id: BlobId) -> Option<u64> {
        let mut state = self.state();
        let entry = state.blobs.get_mut(&id)?;
        entry.asked_at = BootTime::now();
        Some(entry.size_bytes)
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

    /// Whether less is left than a tenth of what there may be, or of what must stay free beside that.
    pub fn is_short_of_room(&self) -> bool {
        let BlobLimits { quota_bytes, free_bytes_min } = self.0.limits;
        let near_quota = |quota_bytes: u64| self.used_bytes() >= quota_bytes - quota_bytes / 10;
        let free_bytes = self.free_bytes().unwrap_or(u64::MAX);
        quota_bytes.is_some_and(near_quota) || free_bytes < free_bytes_min.saturating_add(free_bytes_min / 10)
    }

    /// The blob's pieces.
    pub fn manifest(&self, id: BlobId) -> Result<PieceManifest, BlobError> {
        Ok(self.reader(id)?.manifest)
    }

    /// Adds bytes from memory; they are durable when this returns.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<BlobId, BlobError> {
        self.put_reader(bytes, bytes.len() as u64, Path::new("bytes in memory"))
    }

    /// Adds a copy of a file; it is durable when this returns.
    pub fn put_file(&self, path: &Path) -> Result<BlobId, BlobError> {
        let file = File::open(path).context("open", path)?;
        let size_bytes = file.metadata().context("look at", path)?.len();
        self.put_reader(file, size_bytes, path)
    }

    /// Adds what `source` gives, which must be exactly `size_bytes`; it is durable when this returns. `path` is where it
    /// comes from, for errors.
    pub fn put_reader(&self, source: impl Read, size_bytes: u64, path: &Path) -> Result<BlobId, BlobError> {
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
            self.install(id, &manifest, &file, &temporary).inspect_err(|_| {
                // The first error is the one to report; what is left is cleared at the next start.
                let _ = layout::remove_file(&temporary);
            })?;
        }
        Ok(id)
    }

    /// Removes a blob; false if it is not here. Whether anyone still needs it is the caller's to know.
    pub fn remove(&self, id: BlobId) -> Result<bool, BlobError> {
        self.remove_if(id, |_| true)
    }

    /// Removes a blob that nobody reads just now, and that nobody has brought or asked for since then; false if it is not
    /// here, or somebody has.
    pub fn remove_idle(&self, id: BlobId, since: BootTime) -> Result<bool, BlobError> {
        self.remove_if(id, |entry| entry.is_idle_since(since))
    }

    fn remove_if(&self, id: BlobId, may_go: impl FnOnce(&Entry) -> bool) -> Result<bool, BlobError> {
        let _naming = self.naming();
        {
            // One step: who asks after it hears that the blob is gone, who asks before it keeps the blob.
            let mut state = self.state();
            if !state.blobs.get(&id).is_some_and(may_go) {
                return Ok(false);
            }
            state.blobs.remove(&id);
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
        self.state().blobs.insert(id, Entry::new(size_bytes, Some(stamp)));
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
        warn!(blob = %id, problem, "blob damaged on disk; moved to quarantine");
        BlobError::Corrupt { id, problem, quarantine }
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

    pub(super) fn check_room(&self, state: &State, needed_bytes: u64) -> Result<(), BlobError> {
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

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
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
