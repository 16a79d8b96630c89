//! Reading blobs: every byte is checked before it is given out.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    blob::{
        BlobError, BlobStore, ManifestError, PieceManifest,
        layout::{self, Stamp},
    },
    durable::{self, Context, FileError},
    id::BlobId,
};

impl BlobStore {
    /// Opens a blob to read its pieces.
    pub fn reader(&self, id: BlobId) -> Result<BlobReader, BlobError> {
        self.size(id).ok_or(BlobError::NotFound { id })?;
        let lent = self.state().blobs.get(&id).map(|entry| Arc::clone(&entry.lent));
        let lent = lent.ok_or(BlobError::NotFound { id })?;
        let place = self.layout().place(id);
        let opened = (|| {
            let file = File::open(&place.data).context("open", &place.data)?;
            let stamp = Stamp::of(&file, &place.data)?;
            Ok((file, stamp, layout::read_manifest(&place.pieces, id)?))
        })();
        match opened {
            Ok((file, stamp, Ok(manifest))) => {
                Ok(BlobReader { store: self.clone(), id, manifest, file, stamp, _lent: lent })
            }
            Ok((_, stamp, Err(problem))) => Err(self.quarantine(id, Some(stamp), problem)),
            Err(error) if FileError::is_missing(&error) && self.has(id) => {
                Err(self.quarantine(id, None, "its file is missing".to_owned()))
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
}

/// An open blob. It stays readable when the store removes the blob meanwhile.
#[derive(Debug)]
pub struct BlobReader {
    pub(super) store: BlobStore,
    pub(super) id: BlobId,
    pub(super) manifest: PieceManifest,
    pub(super) file: File,
    pub(super) stamp: Stamp,
    /// As long as it is there, the blob is in use.
    _lent: Arc<()>,
}

impl BlobReader {
    /// Its pieces.
    pub fn manifest(&self) -> &PieceManifest {
        &self.manifest
    }

    /// Reads piece `index`. Bytes that have changed on the disk are never returned: the blob goes into quarantine, and
    /// the error is [`BlobError::Corrupt`].
    pub fn read_piece(&self, index: u32) -> Result<Vec<u8>, BlobError> {
        let path = self.store.layout().place(self.id).data;
        match layout::read_piece(&self.file, &self.manifest, index).context("read", &path)? {
            Ok(bytes) => Ok(bytes),
            Err(problem @ ManifestError::NoSuchPiece { .. }) => Err(problem.into()),
            Err(problem) => Err(self.store.quarantine(self.id, Some(self.stamp), problem.to_string())),
        }
    }

    /// Reads and checks everything.
    pub(super) fn verify(&self) -> Result<(), BlobError> {
        let path = self.store.layout().place(self.id).data;
        let length = self.file.metadata().context("look at", &path)?.len();
        if length != self.manifest.size_bytes() {
            let problem = format!("it has {length} bytes instead of {}", self.manifest.size_bytes());
            return Err(self.store.quarantine(self.id, Some(self.stamp), problem));
        }
        (0..self.manifest.piece_count()).try_for_each(|index| self.read_piece(index).map(drop))
    }
}
