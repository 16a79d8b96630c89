//! The checkpoints that are here: each a folder of links to verified blobs, complete or not there at all.

use std::{
    collections::BTreeMap,
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hatchery_common::{
    blob::{BlobError, BlobStore},
    checkpoint::CheckpointManifest,
    durable::{self, FileError},
    id::{BlobId, CheckpointId},
};

use crate::files::{UNFINISHED, finished_names, remove_folder};

/// The file in a checkpoint's folder that says what it is.
const MANIFEST_FILE: &str = "manifest.json";
/// Longest manifest.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024;

/// Why a checkpoint cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointStoreError {
    /// A blob is missing, damaged, or does not fit on the disk.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The checkpoints in a folder; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointStore {
    folder: PathBuf,
    blobs: BlobStore,
    state: Arc<Mutex<State>>,
    /// One worker at a time with each checkpoint's folder, also when whoever asked for the work is gone.
    working: Arc<Mutex<BTreeMap<CheckpointId, Arc<Mutex<()>>>>>,
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<CheckpointId, Arc<CheckpointManifest>>,
    /// How many are at work with a blob that no held checkpoint may name yet.
    pins: BTreeMap<BlobId, usize>,
}

/// Keeps blobs from being removed until dropped.
#[derive(Debug)]
pub(crate) struct Pins {
    store: CheckpointStore,
    blobs: Vec<BlobId>,
}

impl CheckpointStore {
    /// Opens the folder, which must exist, and removes whatever in it is no complete checkpoint, and every blob that
    /// belongs to none.
    pub(crate) fn open(folder: &Path, blobs: BlobStore) -> Result<Self, CheckpointStoreError> {
        let store = Self { folder: folder.to_owned(), blobs, state: Arc::default(), working: Arc::default() };
        for name in finished_names(folder)? {
            let path = folder.join(&name);
            match read_manifest(&path) {
                Some(manifest) if manifest.id().to_string() == name => {
                    store.state().held.insert(manifest.id(), Arc::new(manifest));
                }
                _ => {
                    tracing::warn!(folder = %path.display(), "this is no complete checkpoint; it is removed");
                    remove_folder(&path)?;
                }
            }
        }
        for blob in store.blobs.list() {
            store.remove_unused(&[blob.id])?;
        }
        Ok(store)
    }

    /// The blobs below the checkpoints.
    pub(crate) fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    /// Every checkpoint that is here.
    pub(crate) fn ids(&self) -> Vec<CheckpointId> {
        self.state().held.keys().copied().collect()
    }

    /// The manifest of a checkpoint that is here.
    pub(crate) fn manifest(&self, id: CheckpointId) -> Option<Arc<CheckpointManifest>> {
        self.state().held.get(&id).cloned()
    }

    /// Where a checkpoint's files are, if it is here.
    pub(crate) fn folder(&self, id: CheckpointId) -> Option<PathBuf> {
        self.state().held.contains_key(&id).then(|| self.path(id))
    }

    /// Keeps `blobs` from being removed until the guard is dropped.
    pub(crate) fn pin(&self, blobs: Vec<BlobId>) -> Pins {
        for blob in &blobs {
            *self.state().pins.entry(*blob).or_default() += 1;
        }
        Pins { store: self.clone(), blobs }
    }

    /// Puts a checkpoint together whose blobs are all here: each is hashed, linked into a new folder, and the folder
    /// gets its name when it is complete and on the disk. One that is there already is hashed again.
    pub(crate) fn install(&self, manifest: &CheckpointManifest) -> Result<(), CheckpointStoreError> {
        let id = manifest.id();
        self.alone_with(id, || self.install_alone(id, manifest))
    }

    fn install_alone(
        &self,
        id: CheckpointId,
        manifest: &CheckpointManifest,
    ) -> Result<(), CheckpointStoreError> {
        if self.manifest(id).is_some() {
            return self.verify_alone(id);
        }
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&self.folder)
            .map_err(|error| FileError::new("write in", &self.folder, error))?;
        for file in &manifest.files {
            self.blobs.link_or_copy_to(file.blob, &unfinished.path().join(&file.name))?;
        }
        let text = serde_json::to_vec(manifest).expect("a manifest of text and numbers is always JSON");
        durable::write_atomically(&unfinished.path().join(MANIFEST_FILE), &text)?;
        let path = self.path(id);
        // What stands there without being held is no checkpoint.
        remove_folder(&path)?;
        durable::rename(&unfinished.keep(), &path)?;
        self.state().held.insert(id, Arc::new(manifest.clone()));
        Ok(())
    }

    /// Hashes every file of a checkpoint that is here. One found damaged is removed, so that it is fetched again.
    fn verify_alone(&self, id: CheckpointId) -> Result<(), CheckpointStoreError> {
        let Some(manifest) = self.manifest(id) else { return Ok(()) };
        for file in &manifest.files {
            let path = self.path(id).join(&file.name);
            let checked =
                self.blobs.open_verified(file.blob).map_err(CheckpointStoreError::from).and_then(|_| {
                    let found = path.metadata().map_err(|error| FileError::new("read", &path, error))?.len();
                    let wrong =
                        || FileError::new("use", &path, io::Error::other(format!("it has {found} bytes")));
                    (found == file.size_bytes).then_some(()).ok_or_else(|| wrong().into())
                });
            if let Err(error) = checked {
                tracing::warn!(checkpoint = %id.short(), %error, "a checkpoint is damaged here; it is removed");
                self.forget(id)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes a checkpoint, and those of its blobs that nothing else here needs.
    pub(crate) fn remove(&self, id: CheckpointId) -> Result<(), CheckpointStoreError> {
        self.alone_with(id, || {
            let Some(manifest) = self.manifest(id) else { return Ok(()) };
            self.forget(id)?;
            let blobs: Vec<BlobId> = manifest.files.iter().map(|file| file.blob).collect();
            self.remove_unused(&blobs)
        })
    }

    /// Removes those of `blobs` that no checkpoint here names and nobody is at work with.
    pub(crate) fn remove_unused(&self, blobs: &[BlobId]) -> Result<(), CheckpointStoreError> {
        for blob in blobs {
            let state = self.state();
            let named =
                state.held.values().any(|manifest| manifest.files.iter().any(|file| file.blob == *blob));
            if !named && !state.pins.contains_key(blob) {
                self.blobs.remove(*blob)?;
            }
        }
        Ok(())
    }

    /// Does `work` while nobody else works on the same checkpoint's folder. Blocks; not to be nested.
    fn alone_with<T>(&self, id: CheckpointId, work: impl FnOnce() -> T) -> T {
        let lock = {
            let mut working = self.working.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for are only in the map.
            working.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(working.entry(id).or_default())
        };
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }

    fn forget(&self, id: CheckpointId) -> Result<(), FileError> {
        self.state().held.remove(&id);
        // First it loses its name, so that no half of it is ever taken for a checkpoint.
        let leaving = self.folder.join(format!("{UNFINISHED}{id}"));
        remove_folder(&leaving)?;
        durable::rename(&self.path(id), &leaving)?;
        remove_folder(&leaving)
    }

    fn path(&self, id: CheckpointId) -> PathBuf {
        self.folder.join(id.to_string())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for blob in &self.blobs {
            if let Some(count) = state.pins.get_mut(blob) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(blob);
                }
            }
        }
    }
}

fn read_manifest(folder: &Path) -> Option<CheckpointManifest> {
    let text = durable::read_limited(&folder.join(MANIFEST_FILE), MANIFEST_BYTES_MAX).ok()?;
    let manifest: CheckpointManifest = serde_json::from_slice(&text).ok()?;
    let complete = manifest.check().is_ok()
        && manifest.files.iter().all(|file| {
            folder.join(&file.name).metadata().is_ok_and(|metadata| metadata.len() == file.size_bytes)
        });
    complete.then_some(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hatchery_common::{
        blob::BlobLimits,
        checkpoint::CheckpointFile,
        id::{Epoch, JobId},
        model::{ModelConfig, RawModelConfig},
        trainer::Metrics,
    };

    #[test]
    fn many_may_install_one_checkpoint_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (blobs, checkpoints) = (folder.path().join("blobs"), folder.path().join("checkpoints"));
        for path in [&blobs, &checkpoints] {
            std::fs::create_dir(path).unwrap();
        }
        let blobs = BlobStore::open(&blobs, BlobLimits { free_bytes_min: 0, ..Default::default() }).unwrap();
        let store = CheckpointStore::open(&checkpoints, blobs.clone()).unwrap();
        let files = CheckpointManifest::FILES.iter().map(|name| CheckpointFile {
            name: (*name).to_owned(),
            blob: blobs.put_bytes(name.as_bytes()).unwrap(),
            size_bytes: name.len() as u64,
        });
        let manifest = CheckpointManifest {
            job: JobId::random(),
            epoch: Epoch(1),
            step: 1,
            parent: None,
            dataset: "0".repeat(64).parse().unwrap(),
            model: ModelConfig::new(RawModelConfig::default()).unwrap(),
            block: 8,
            metrics: Metrics::default(),
            files: files.collect(),
        };
        let id = manifest.id();
        for _ in 0..20 {
            let _pins = store.pin(manifest.files.iter().map(|file| file.blob).collect());
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| store.install(&manifest).unwrap());
                }
            });
            assert!(manifest.files.iter().all(|file| store.folder(id).unwrap().join(&file.name).is_file()));
            store.remove(id).unwrap();
            assert!(store.folder(id).is_none() && !checkpoints.join(id.to_string()).exists());
        }
    }
}
