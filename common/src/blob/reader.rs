//! Reading pieces, each checked as it is read.

use std::fs::File;

use crate::{
    blob::{
        BlobError, BlobStore, ManifestError, PieceManifest,
        layout::{self, Stamp},
    },
    durable::Context,
    id::BlobId,
};

/// An open blob. It stays readable when the store removes the blob meanwhile.
#[derive(Debug)]
pub struct BlobReader {
    pub(super) store: BlobStore,
    pub(super) id: BlobId,
    pub(super) manifest: PieceManifest,
    pub(super) file: File,
    pub(super) stamp: Stamp,
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
