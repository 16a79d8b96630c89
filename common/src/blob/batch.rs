//! Adding many small blobs at once, so that the disk is waited for a few times and not several times for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tempfile::NamedTempFile;

use crate::{
    blob::{
        BlobError, BlobStore, PieceManifest,
        layout::{self, Stamp},
    },
    durable::{self, Context, FileError},
    id::BlobId,
};

/// Blobs that are open at once; each has two files.
const GROUP_BLOBS: usize = 64;
/// How many threads wait for the disk at once: a file system brings what many wait for to the disk together.
const SYNCS_AT_ONCE: usize = 16;

/// A blob on its way, in two temporary files.
struct Arriving {
    size_bytes: u64,
    data: NamedTempFile,
    pieces: NamedTempFile,
}

impl BlobStore {
    /// Adds small blobs from memory; all are durable when this returns, and have the order of `blobs`. After an error
    /// some of them may be there.
    pub fn put_many(&self, blobs: &[impl AsRef<[u8]>]) -> Result<Vec<BlobId>, BlobError> {
        let mut ids = Vec::with_capacity(blobs.len());
        for group in blobs.chunks(GROUP_BLOBS) {
            let manifests: Vec<_> =
                group.iter().map(|bytes| PieceManifest::of_bytes(bytes.as_ref())).collect();
            let named = manifests.iter().map(PieceManifest::id).zip(manifests.iter().zip(group));
            // Equal bytes are one blob.
            let new: BTreeMap<BlobId, _> = named.clone().filter(|(id, _)| !self.has(*id)).collect();
            let size_bytes = new.values().map(|(manifest, _)| manifest.size_bytes()).sum();
            let _incoming = self.reserve(size_bytes)?;
            let arriving = new
                .into_iter()
                .map(|(id, (manifest, bytes))| Ok((id, self.write_temporary(manifest, bytes.as_ref())?)));
            let arriving: Vec<_> = arriving
                .collect::<Result<_, FileError>>()
                .map_err(|error| self.explain_full(error, size_bytes))?;
            self.install_many(arriving).map_err(|error| self.explain_full(error, size_bytes))?;
            ids.extend(named.map(|(id, _)| id));
        }
        Ok(ids)
    }

    fn write_temporary(&self, manifest: &PieceManifest, bytes: &[u8]) -> Result<Arriving, FileError> {
        let folder = &self.layout().partial;
        let write = |bytes: &[u8]| {
            let mut file = tempfile::Builder::new().prefix("put-").tempfile_in(folder)?;
            file.write_all(bytes)?;
            layout::protect(file.as_file())?;
            Ok(file)
        };
        Ok(Arriving {
            size_bytes: manifest.size_bytes(),
            data: write(bytes).context("write in", folder)?,
            pieces: write(&manifest.encode()).context("write in", folder)?,
        })
    }

    /// What one blob goes through when it is installed, but each step for all of them.
    fn install_many(&self, arriving: Vec<(BlobId, Arriving)>) -> Result<(), FileError> {
        let files: Vec<&NamedTempFile> =
            arriving.iter().flat_map(|(_, blob)| [&blob.pieces, &blob.data]).collect();
        side_by_side(&files, |file| durable::sync_file(file.as_file(), file.path()))?;
        let _naming = self.naming();
        let mut folders = BTreeSet::<PathBuf>::new();
        let mut installed = Vec::with_capacity(arriving.len());
        for (id, Arriving { size_bytes, data, pieces }) in arriving {
            let place = self.layout().place(id);
            let stamp = Stamp::of(data.as_file(), data.path())?;
            durable::create_folder(&place.folder)?;
            for (file, place) in [(pieces, &place.pieces), (data, &place.data)] {
                file.persist(place).map_err(|error| FileError::new("rename to", place, error.error))?;
            }
            folders.insert(place.folder);
            installed.push((id, size_bytes, stamp));
        }
        let folders: Vec<PathBuf> = folders.into_iter().collect();
        side_by_side(&folders, |folder| durable::sync_folder(folder))?;
        for (id, size_bytes, stamp) in installed {
            self.register(id, size_bytes, stamp);
        }
        Ok(())
    }
}

/// Does `work` for every item, several at once. The first error ends it.
fn side_by_side<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), FileError> + Sync,
) -> Result<(), FileError> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work_off = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(item) {
                next.store(items.len(), Ordering::Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..SYNCS_AT_ONCE.min(items.len()) {
            scope.spawn(work_off);
        }
        work_off();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
