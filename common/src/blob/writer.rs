//! Collecting the pieces of a blob, in any order, over any number of restarts.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    blob::{BlobError, BlobStore, PieceManifest, PieceSet, layout},
    durable::{self, Context, FileError},
    id::BlobId,
};

/// After this much new data, data and progress are brought to the disk, so that a crash loses no more.
const SYNC_EVERY_BYTES: u64 = 64 << 20;

/// An unfinished blob. Several threads may write pieces at once. Dropped unfinished, it keeps its pieces for the next
/// writer of the same blob.
#[derive(Debug)]
pub struct BlobWriter {
    store: BlobStore,
    id: BlobId,
    manifest: PieceManifest,
    file: File,
    collected: Mutex<Collected>,
}

#[derive(Debug)]
struct Collected {
    progress: PieceSet,
    /// Pieces, and their bytes, that were written since progress was last saved.
    unsaved: PieceSet,
    unsaved_bytes: u64,
    finished: bool,
}

impl BlobWriter {
    pub(super) fn open(store: BlobStore, id: BlobId, manifest: PieceManifest) -> Result<Self, BlobError> {
        let place = store.layout().partial_place(id);
        durable::write_atomically(&place.pieces, &manifest.encode())?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&place.data)
            .context("open", &place.data)?;
        let length = file.metadata().context("look at", &place.data)?.len();
        let count = manifest.piece_count();
        let progress = if length == manifest.size_bytes() {
            let claims = durable::read_limited(&place.have, count.div_ceil(8).into()).unwrap_or_default();
            let claims = PieceSet::from_bytes(count, &claims).unwrap_or_else(|| PieceSet::empty(count));
            check_claims(&file, &manifest, claims).context("read", &place.data)?
        } else {
            layout::preallocate(&file, manifest.size_bytes()).context("write", &place.data)?;
            PieceSet::empty(count)
        };
        let unsaved = PieceSet::empty(count);
        let collected = Mutex::new(Collected { progress, unsaved, unsaved_bytes: 0, finished: false });
        Ok(Self { store, id, manifest, file, collected })
    }

    /// The blob's pieces.
    pub fn manifest(&self) -> &PieceManifest {
        &self.manifest
    }

    /// The blob's name.
    pub fn id(&self) -> BlobId {
        self.id
    }

    /// Checks a piece and writes it to its place; false if it was there already. Bytes that are not the piece are
    /// refused with [`BlobError::WrongPiece`], and not written.
    pub fn write_piece(&self, index: u32, bytes: &[u8]) -> Result<bool, BlobError> {
        let wrong = |problem| BlobError::WrongPiece { id: self.id, problem };
        self.manifest.verify(index, bytes).map_err(wrong)?;
        if self.collected().progress.has(index) {
            return Ok(false);
        }
        let path = self.store.layout().partial_place(self.id).data;
        let offset = u64::from(index) * u64::from(self.manifest.piece_bytes());
        let written = self.file.write_all_at(bytes, offset).context("write", &path);
        written.map_err(|error| self.explain_full(error))?;
        let mut collected = self.collected();
        let new = collected.progress.insert(index);
        collected.unsaved.insert(index);
        collected.unsaved_bytes += bytes.len() as u64;
        if collected.unsaved_bytes >= SYNC_EVERY_BYTES {
            self.save_collected(&mut collected)?;
        }
        Ok(new)
    }

    /// The pieces that are missing still, in order.
    pub fn missing(&self) -> Vec<u32> {
        self.collected().progress.missing().indexes().collect()
    }

    /// Whether piece `index` is there.
    pub fn has(&self, index: u32) -> bool {
        self.collected().progress.has(index)
    }

    /// The pieces that are there.
    pub fn have(&self) -> PieceSet {
        self.collected().progress.clone()
    }

    /// How many pieces are there.
    pub fn have_count(&self) -> u32 {
        self.collected().progress.held()
    }

    /// Reads back a piece that came so lately that the system has it in memory, and without waiting for anybody: not for the
    /// disk, nor for whoever saves progress. It was hashed when it came, and is not again. None: [`BlobWriter::read_piece`]
    /// says what there is.
    pub fn read_unsaved(&self, index: u32) -> Option<Vec<u8>> {
        let is_unsaved = {
            let collected = self.collected.try_lock().ok()?;
            !collected.finished && collected.unsaved.has(index)
        };
        is_unsaved.then(|| layout::read_unchecked(&self.file, &self.manifest, index).ok()?.ok())?
    }

    /// Reads a piece back and checks it, for others who want it before the blob is whole; none if it is not there yet.
    pub fn read_piece(&self, index: u32) -> Result<Option<Vec<u8>>, BlobError> {
        if !self.has(index) {
            return Ok(None);
        }
        let path = self.store.layout().partial_place(self.id).data;
        let bytes = layout::read_piece(&self.file, &self.manifest, index).context("read", &path)?.ok();
        if bytes.is_none() {
            // Damaged on this disk since it was written: it is missing again.
            self.collected().progress.remove(index);
        }
        Ok(bytes)
    }

    /// Brings what was written so far to the disk, so that a crash does not lose it.
    pub fn save(&self) -> Result<(), BlobError> {
        self.save_collected(&mut self.collected())
    }

    /// Checks length and every piece once more as the file holds them, and puts the blob in its place: fsync, rename,
    /// fsync of the folder. With pieces missing, or changed since they were written, the error is
    /// [`BlobError::Incomplete`]; fetch those and call it again. Pieces can be read all the while, and after.
    pub fn finish(&self) -> Result<BlobId, BlobError> {
        let place = self.store.layout().partial_place(self.id);
        let claimed = {
            let collected = self.collected();
            if collected.finished {
                return Ok(self.id);
            }
            collected.progress.clone()
        };
        let good = check_claims(&self.file, &self.manifest, claimed.clone()).context("read", &place.data)?;
        let length = self.file.metadata().context("look at", &place.data)?.len();
        let mut collected = self.collected();
        for damaged in claimed.difference(&good).indexes() {
            collected.progress.remove(damaged);
        }
        let count = self.manifest.piece_count();
        let missing = count - good.held();
        if missing > 0 || length != self.manifest.size_bytes() {
            return Err(BlobError::Incomplete { id: self.id, missing, count });
        }
        drop(collected);
        let synced = durable::sync_file(&self.file, &place.data);
        synced.map_err(|error| self.explain_full(error))?;
        self.store.install(self.id, &self.manifest, &self.file, &place.data)?;
        self.collected().finished = true;
        self.store.end_transfer(self.id);
        Ok(self.id)
    }

    fn save_collected(&self, collected: &mut Collected) -> Result<(), BlobError> {
        let place = self.store.layout().partial_place(self.id);
        // Data before claims: what the file of claims says was on the disk when it was written.
        durable::sync_file(&self.file, &place.data)
            .and_then(|()| durable::write_atomically(&place.have, &collected.progress.to_bytes()))
            .map_err(|error| self.explain_full(error))?;
        collected.unsaved = PieceSet::empty(self.manifest.piece_count());
        collected.unsaved_bytes = 0;
        Ok(())
    }

    fn explain_full(&self, error: FileError) -> BlobError {
        self.store.explain_full(error, self.manifest.size_bytes())
    }

    fn collected(&self) -> MutexGuard<'_, Collected> {
        // A bit is set only after its piece was written, so a panic elsewhere leaves the claims true.
        self.collected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        let mut collected = self.collected();
        if collected.finished {
            return;
        }
        if collected.unsaved_bytes > 0
            && let Err(error) = self.save_collected(&mut collected)
        {
            tracing::warn!(blob = %self.id, %error, "progress is not saved; its pieces will be fetched again");
        }
        self.store.release_transfer(self.id);
    }
}

/// Leaves of the claimed pieces only those that the file really holds.
fn check_claims(file: &File, manifest: &PieceManifest, mut claims: PieceSet) -> std::io::Result<PieceSet> {
    for index in claims.clone().indexes() {
        if layout::read_piece(file, manifest, index)?.is_err() {
            claims.remove(index);
        }
    }
    Ok(claims)
}
