//! The checkpoints that are here: each a folder of links to verified blobs, complete or not there at all.
//!
//! A folder has one of two forms: whole, or serving-only, which has two of the files (see [`ReplicaForm`]). Its files tell
//! which, since the weights of the two differ in size. A serving-only one becomes whole in its place: what it lacks is
//! linked into it, and the other weights take the name last, by one rename; up to then it is what it was.

use std::{
    collections::BTreeMap,
    fs::{Metadata, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hatchery_common::{
    blob::{BlobError, BlobStore, PieceManifest},
    checkpoint::{CheckpointFile, CheckpointManifest, MODEL_FILE, ReplicaForm},
    durable::{self, FileError},
    id::{BlobId, CheckpointId},
};

use crate::files::{UNFINISHED, finished_names, remove_file, remove_folder};

/// The file in a checkpoint's folder that says what it is.
const MANIFEST_FILE: &str = "manifest.json";
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
    held: BTreeMap<CheckpointId, Held>,
    /// Those of which parts may be here beside what is held: they are on their way here, or on their way out.
    begun: BTreeMap<CheckpointId, Arc<CheckpointManifest>>,
    /// How many are at work with a blob that no held checkpoint may name yet.
    pins: BTreeMap<BlobId, usize>,
}

/// A checkpoint that is here.
#[derive(Clone, Debug)]
struct Held {
    manifest: Arc<CheckpointManifest>,
    form: ReplicaForm,
}

impl Held {
    fn files(&self) -> impl Iterator<Item = (&str, &CheckpointFile)> {
        self.manifest.files_in(self.form)
    }

    fn names(&self, blob: BlobId) -> bool {
        self.files().any(|(_, file)| file.blob == blob)
    }
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
            match read_held(&path) {
                Some(held) if held.manifest.id().to_string() == name => {
                    clear_others(&path, &held)?;
                    store.state().held.insert(held.manifest.id(), held);
                }
                _ => {
                    tracing::warn!(folder = %path.display(), "removing an incomplete checkpoint");
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

    /// Notes that the blobs of a checkpoint are about to come, for a replica of this form, so that its removal finds them.
    pub(crate) fn begin(&self, id: CheckpointId, manifest: &Arc<CheckpointManifest>, form: ReplicaForm) {
        let mut state = self.state();
        if state.held.get(&id).is_none_or(|held| held.form < form) {
            state.begun.insert(id, Arc::clone(manifest));
        }
    }

    /// Every checkpoint of which parts may be here beside what is held.
    pub(crate) fn begun(&self) -> Vec<CheckpointId> {
        self.state().begun.keys().copied().collect()
    }

    /// Removes what was begun to make serving-only checkpoints whole, and given up. Only when nothing is under way.
    pub(crate) fn discard_given_up(&self) -> Result<(), CheckpointStoreError> {
        let given_up: Vec<(CheckpointId, Arc<CheckpointManifest>)> = {
            let state = self.state();
            let begun = state.begun.iter().filter(|(id, _)| state.held.contains_key(*id));
            begun.map(|(id, manifest)| (*id, Arc::clone(manifest))).collect()
        };
        given_up.into_iter().try_for_each(|(id, manifest)| {
            self.alone_with(id, || {
                // Whoever was at work with it may have ended it well.
                if self.state().begun.contains_key(&id) {
                    self.remove_unused(&blobs_of(&manifest))?;
                    self.state().begun.remove(&id);
                }
                Ok(())
            })
        })
    }

    /// The manifest of a checkpoint that is here.
    pub(crate) fn manifest(&self, id: CheckpointId) -> Option<Arc<CheckpointManifest>> {
        self.state().held.get(&id).map(|held| Arc::clone(&held.manifest))
    }

    /// The form of a checkpoint that is here.
    pub(crate) fn form(&self, id: CheckpointId) -> Option<ReplicaForm> {
        self.state().held.get(&id).map(|held| held.form)
    }

    /// The blobs of a checkpoint that is here, those alone that its form has.
    pub(crate) fn blobs_held(&self, id: CheckpointId) -> Vec<BlobId> {
        let state = self.state();
        let files = state.held.get(&id).into_iter().flat_map(Held::files);
        files.map(|(_, file)| file.blob).collect()
    }

    /// Where a checkpoint's files are, if it is here, and in which form.
    pub(crate) fn folder(&self, id: CheckpointId) -> Option<(PathBuf, ReplicaForm)> {
        self.form(id).map(|form| (self.path(id), form))
    }

    /// Keeps `blobs` from being removed until the guard is dropped.
    pub(crate) fn pin(&self, blobs: Vec<BlobId>) -> Pins {
        for blob in &blobs {
            *self.state().pins.entry(*blob).or_default() += 1;
        }
        Pins { store: self.clone(), blobs }
    }

    /// Puts a checkpoint of this form together whose blobs are all here: each is hashed, linked into a new folder, and the
    /// folder gets its name when it is complete and on the disk. One that is there already is hashed again, or becomes
    /// whole.
    pub(crate) fn install(
        &self,
        manifest: &Arc<CheckpointManifest>,
        form: ReplicaForm,
    ) -> Result<(), CheckpointStoreError> {
        let (id, form) = (manifest.id(), manifest.form_for(form));
        let installed = self.alone_with(id, || match self.form(id) {
            Some(held) if held < form => self.complete_alone(id),
            Some(_) => self.verify_alone(id),
            None => self.install_alone(id, manifest, form),
        });
        if let Err(CheckpointStoreError::Blob(BlobError::Corrupt { id: blob, .. })) = &installed {
            self.forget_all_with(*blob)?;
        }
        installed
    }

    /// Removes every checkpoint that has a blob which was found damaged: their folders are links to the same bytes.
    pub(crate) fn forget_all_with(&self, blob: BlobId) -> Result<(), CheckpointStoreError> {
        let ids: Vec<CheckpointId> =
            self.state().held.iter().filter(|(_, held)| held.names(blob)).map(|(id, _)| *id).collect();
        for id in ids {
            self.alone_with(id, || if self.manifest(id).is_some() { self.forget(id) } else { Ok(()) })?;
        }
        Ok(())
    }

    fn install_alone(
        &self,
        id: CheckpointId,
        manifest: &Arc<CheckpointManifest>,
        form: ReplicaForm,
    ) -> Result<(), CheckpointStoreError> {
        let unfinished = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&self.folder)
            .map_err(|error| FileError::new("write in", &self.folder, error))?;
        for (name, file) in manifest.files_in(form) {
            self.blobs.link_or_copy_to(file.blob, &unfinished.path().join(name))?;
        }
        let text = serde_json::to_vec(&**manifest).expect("a manifest of text and numbers is always JSON");
        durable::write_atomically(&unfinished.path().join(MANIFEST_FILE), &text)?;
        let path = self.path(id);
        // What stands there without being held is no checkpoint.
        remove_folder(&path)?;
        durable::rename(&unfinished.keep(), &path)?;
        {
            let mut state = self.state();
            state.held.insert(id, Held { manifest: Arc::clone(manifest), form });
            state.begun.remove(&id);
        }
        // It may have been here whole before.
        match self.remove_unused(&blobs_of(manifest)) {
            // Somebody lets go of it just now.
            Err(CheckpointStoreError::Blob(BlobError::Busy { .. })) => Ok(()),
            other => other,
        }
    }

    /// Makes a serving-only checkpoint whole.
    fn complete_alone(&self, id: CheckpointId) -> Result<(), CheckpointStoreError> {
        self.verify_alone(id)?;
        let Some(held) = self.state().held.get(&id).cloned() else { return Ok(()) };
        let whole = Held { form: ReplicaForm::Whole, ..held.clone() };
        let path = self.path(id);
        let is_here = |name: &str| held.files().any(|(own, _)| own == name);
        let missing = whole.files().filter(|(name, _)| !is_here(name));
        // The weights last: from then on it is whole.
        for (name, file) in missing.chain(whole.files().filter(|(name, _)| *name == MODEL_FILE)) {
            if let Err(error) = self.blobs.link_or_copy_to(file.blob, &path.join(name)) {
                clear_others(&path, &held)?;
                return Err(error.into());
            }
        }
        let mut state = self.state();
        state.held.insert(id, whole);
        state.begun.remove(&id);
        Ok(())
    }

    /// Hashes every file of a checkpoint that is here. One found damaged is removed, so that it is fetched again.
    fn verify_alone(&self, id: CheckpointId) -> Result<(), CheckpointStoreError> {
        let Some(held) = self.state().held.get(&id).cloned() else { return Ok(()) };
        for (name, file) in held.files() {
            if let Err(error) = self.verify_file(file, &self.path(id).join(name)) {
                tracing::warn!(checkpoint = %id.short(), %error, "removing a damaged checkpoint");
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
            tracing::warn!(file = %path.display(), "replacing a file with wrong contents");
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
            self.remove_unused(&blobs_of(&manifest))?;
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
                "disk space is low: removing blobs that belong to no checkpoint here"
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
            if let Some(held) = state.held.remove(&id) {
                state.begun.insert(id, held.manifest);
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
        self.pins.contains_key(&blob) || self.held.values().any(|held| held.names(blob))
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

fn blobs_of(manifest: &CheckpointManifest) -> Vec<BlobId> {
    manifest.files.iter().map(|file| file.blob).collect()
}

/// What a folder holds; none if that is no complete checkpoint of either form.
fn read_held(folder: &Path) -> Option<Held> {
    let text = durable::read_limited(&folder.join(MANIFEST_FILE), MANIFEST_BYTES_MAX).ok()?;
    let manifest: CheckpointManifest = serde_json::from_slice(&text).ok()?;
    manifest.check().ok()?;
    let size_bytes = |name: &str| folder.join(name).metadata().ok().map(|metadata| metadata.len());
    let is_complete = |form: &ReplicaForm| {
        manifest.files_in(*form).all(|(name, file)| size_bytes(name) == Some(file.size_bytes))
    };
    let form = [ReplicaForm::Whole, ReplicaForm::ServingOnly].into_iter().find(is_complete)?;
    Some(Held { manifest: Arc::new(manifest), form })
}

/// Removes from a folder the files that do not belong to its form: it was to become whole, and that broke off.
fn clear_others(folder: &Path, held: &Held) -> Result<(), FileError> {
    let entries = std::fs::read_dir(folder).map_err(|error| FileError::new("read", folder, error))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_own = name == MANIFEST_FILE || held.files().any(|(own, _)| name == own);
        if !is_own && entry.path().is_file() {
            remove_file(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
