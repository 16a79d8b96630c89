//! The checkpoints that are here: each a folder of links to verified blobs, complete or not there at all.

use std::{
    collections::BTreeMap,
    fs::{Metadata, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hatchery_common::{
    blob::{BlobError, BlobStore, PieceManifest},
    checkpoint::{CheckpointFile, CheckpointManifest},
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
    /// Those of which parts may be here though they are not held: they are on their way here, or on their way out.
    begun: BTreeMap<CheckpointId, Arc<CheckpointManifest>>,
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

    /// Notes that the blobs of a checkpoint are about to come, so that its removal finds them.
    pub(crate) fn begin(&self, id: CheckpointId, manifest: &Arc<CheckpointManifest>) {
        let mut state = self.state();
        if !state.held.contains_key(&id) {
            state.begun.insert(id, Arc::clone(manifest));
        }
    }

    /// Every checkpoint of which parts may be here, but not all of it.
    pub(crate) fn begun(&self) -> Vec<CheckpointId> {
        self.state().begun.keys().copied().collect()
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
        let installed = self.alone_with(id, || self.install_alone(id, manifest));
        if let Err(CheckpointStoreError::Blob(BlobError::Corrupt { id: blob, .. })) = &installed {
            self.forget_all_with(*blob)?;
        }
        installed
    }

    /// Removes every checkpoint that has a blob which was found damaged: their folders are links to the same bytes.
    pub(crate) fn forget_all_with(&self, blob: BlobId) -> Result<(), CheckpointStoreError> {
        let names = |manifest: &CheckpointManifest| manifest.files.iter().any(|file| file.blob == blob);
        let ids: Vec<CheckpointId> =
            self.state().held.iter().filter(|(_, manifest)| names(manifest)).map(|(id, _)| *id).collect();
        for id in ids {
            self.alone_with(id, || if self.manifest(id).is_some() { self.forget(id) } else { Ok(()) })?;
        }
        Ok(())
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
        let mut state = self.state();
        state.held.insert(id, Arc::new(manifest.clone()));
        state.begun.remove(&id);
        Ok(())
    }

    /// Hashes every file of a checkpoint that is here. One found damaged is removed, so that it is fetched again.
    fn verify_alone(&self, id: CheckpointId) -> Result<(), CheckpointStoreError> {
        let Some(manifest) = self.manifest(id) else { return Ok(()) };
        for file in &manifest.files {
            if let Err(error) = self.verify_file(file, &self.path(id).join(&file.name)) {
                tracing::warn!(checkpoint = %id.short(), %error, "a checkpoint is damaged here; it is removed");
                self.forget(id)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Hashes a file of a folder: as the blob, whose bytes a link shares. Any other file is hashed for itself, a copy as
    /// well as a link to what stood there before the blob was damaged and came anew; such a link is made again.
    fn verify_file(&self, file: &CheckpointFile, path: &Path) -> Result<(), CheckpointStoreError> {
        let inode = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let blob = self.blobs.open_verified(file.blob)?;
        let blob = inode(blob.metadata().map_err(|error| FileError::new("look at", path, error))?);
        let found = inode(path.metadata().map_err(|error| FileError::new("look at", path, error))?);
        if found != blob && PieceManifest::of_file(path)?.id() != file.blob {
            tracing::warn!(file = %path.display(), "this is not what it should be; it is replaced");
            self.blobs.link_or_copy_to(file.blob, path)?;
        }
        Ok(())
    }

    /// Removes a checkpoint, or what is here of it, and those of its blobs that nothing else here needs. While an
    /// unfinished one has a writer still, the error is [`BlobError::Busy`], and it is to be removed again.
    pub(crate) fn remove(&self, id: CheckpointId) -> Result<(), CheckpointStoreError> {
        self.alone_with(id, || {
            if self.manifest(id).is_some() {
                self.forget(id)?;
            }
            let Some(manifest) = self.state().begun.get(&id).cloned() else { return Ok(()) };
            let blobs: Vec<BlobId> = manifest.files.iter().map(|file| file.blob).collect();
            self.remove_unused(&blobs)?;
            self.state().begun.remove(&id);
            Ok(())
        })
    }

    /// Removes those of `blobs`, whole or unfinished, that no checkpoint here names and nobody is at work with.
    pub(crate) fn remove_unused(&self, blobs: &[BlobId]) -> Result<(), CheckpointStoreError> {
        for blob in blobs {
            let state = self.state();
            if !state.needs(*blob) {
                // First what may turn into the other.
                self.blobs.discard_partial(*blob)?;
                self.blobs.remove(*blob)?;
            }
        }
        Ok(())
    }

    /// Removes whatever no checkpoint here names and nobody is at work with, also what was begun and is to be gone on with
    /// later; true if there is more room now.
    pub(crate) fn make_room(&self) -> Result<bool, CheckpointStoreError> {
        let before_bytes = self.blobs.used_bytes();
        let here = self.blobs.list().into_iter().chain(self.blobs.partials());
        for blob in here {
            match self.remove_unused(&[blob.id]) {
                // Somebody lets go of it just now.
                Err(CheckpointStoreError::Blob(BlobError::Busy { .. })) => {}
                other => other?,
            }
        }
        let gone_bytes = before_bytes.saturating_sub(self.blobs.used_bytes());
        if gone_bytes > 0 {
            tracing::info!(
                bytes = gone_bytes,
                "room is short: what belongs to no checkpoint here is removed"
            );
        }
        Ok(gone_bytes > 0)
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
        {
            let mut state = self.state();
            if let Some(manifest) = state.held.remove(&id) {
                state.begun.insert(id, manifest);
            }
        }
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

impl State {
    /// Whether a held checkpoint names a blob, or somebody is at work with it.
    fn needs(&self, blob: BlobId) -> bool {
        let names = |manifest: &Arc<CheckpointManifest>| manifest.files.iter().any(|file| file.blob == blob);
        self.pins.contains_key(&blob) || self.held.values().any(names)
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
        id::{Epoch, JobId},
        model::{ModelConfig, RawModelConfig},
        trainer::Metrics,
    };

    fn open(folder: &Path) -> CheckpointStore {
        let (blobs, checkpoints) = (folder.join("blobs"), folder.join("checkpoints"));
        for path in [&blobs, &checkpoints] {
            std::fs::create_dir_all(path).unwrap();
        }
        let blobs = BlobStore::open(&blobs, BlobLimits { free_bytes_min: 0, ..Default::default() }).unwrap();
        CheckpointStore::open(&checkpoints, blobs).unwrap()
    }

    /// A checkpoint whose files have their names as bytes.
    fn manifest(blobs: &BlobStore) -> CheckpointManifest {
        let files = CheckpointManifest::FILES.iter().map(|name| CheckpointFile {
            name: (*name).to_owned(),
            blob: blobs.put_bytes(name.as_bytes()).unwrap(),
            size_bytes: name.len() as u64,
        });
        CheckpointManifest {
            job: JobId::random(),
            epoch: Epoch(1),
            step: 1,
            parent: None,
            dataset: "0".repeat(64).parse().unwrap(),
            model: ModelConfig::new(RawModelConfig::default()).unwrap(),
            block: 8,
            metrics: Metrics::default(),
            files: files.collect(),
        }
    }

    #[test]
    fn a_bit_that_flips_in_a_shared_blob_is_found_for_all_that_share_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let (one, other) = (manifest(store.blobs()), manifest(store.blobs()));
        let name = CheckpointManifest::FILES[1];
        let path = |manifest: &CheckpointManifest| store.path(manifest.id()).join(name);
        store.install(&one).unwrap();
        store.install(&other).unwrap();
        let flip = |path: &Path| {
            std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
            std::fs::write(path, name.replace('m', "n")).unwrap();
        };
        flip(&path(&one));
        assert!(matches!(store.install(&one), Err(CheckpointStoreError::Blob(BlobError::Corrupt { .. }))));
        assert_eq!(store.ids(), [], "both are links to the same bytes");

        // The blob comes again, and a folder still has what stood there before.
        store.blobs().put_bytes(name.as_bytes()).unwrap();
        store.install(&one).unwrap();
        store.install(&other).unwrap();
        std::fs::remove_file(path(&other)).unwrap();
        std::fs::write(path(&other), name.replace('m', "n")).unwrap();
        store.install(&other).unwrap();
        assert_eq!(std::fs::read_to_string(path(&other)).unwrap(), name);
    }

    #[test]
    fn with_a_fetch_that_was_given_up_all_of_it_goes_that_nobody_needs() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let blobs = store.blobs();
        let half = Arc::new(manifest(blobs));
        let large = PieceManifest::of_bytes(&vec![7; 3 << 20]);
        let mut given_up = CheckpointManifest { step: 2, ..CheckpointManifest::clone(&half) };
        given_up.files[2].blob = large.id();
        let (given_up, id) = (Arc::new(given_up.clone()), given_up.id());
        store.begin(id, &given_up);
        assert_eq!((store.begun(), store.ids()), (vec![id], vec![]));
        let pins = store.pin(vec![half.files[0].blob]);
        let writer = blobs.writer(large).unwrap();
        let error = store.remove(id).unwrap_err();
        assert!(matches!(error, CheckpointStoreError::Blob(BlobError::Busy { .. })), "{error}");
        drop(writer);
        store.remove(id).unwrap();
        assert_eq!((store.begun(), blobs.partials()), (vec![], vec![]));
        let left: Vec<BlobId> = blobs.list().iter().map(|blob| blob.id).collect();
        let mut needed = vec![half.files[0].blob, half.files[2].blob];
        needed.sort();
        assert_eq!(left, needed, "what is at work, and what the checkpoint does not name");

        assert!(store.make_room().unwrap());
        assert_eq!(blobs.list().len(), 1);
        drop(pins);
        assert!(store.make_room().unwrap() && blobs.used_bytes() == 0);
        assert!(!store.make_room().unwrap());
    }

    #[test]
    fn many_may_install_one_checkpoint_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let manifest = manifest(store.blobs());
        let (id, checkpoints) = (manifest.id(), folder.path().join("checkpoints"));
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
