//! What a store does with its folder when it is opened.

use std::{fs, path::Path};

use tracing::warn;

use crate::{
    blob::{
        BlobError, BlobStore,
        layout::{self, InShard},
        store::{Entry, Transfer},
    },
    durable::Context,
    id::BlobId,
};

impl BlobStore {
    pub(super) fn scan_shard(&self, shard: &Path) -> Result<(), BlobError> {
        for name in layout::file_names(shard)? {
            match self.layout().in_shard(shard, &name) {
                InShard::Blob(id) => self.scan_blob(id)?,
                InShard::Pieces => {}
                InShard::Leftover => layout::remove_file(&shard.join(name))?,
                InShard::Stranger => warn!(path = %shard.join(name).display(), "not a blob; ignored"),
            }
        }
        Ok(())
    }

    fn scan_blob(&self, id: BlobId) -> Result<(), BlobError> {
        let place = self.layout().place(id);
        let size_bytes = fs::metadata(&place.data).context("look at", &place.data)?.len();
        let problem = match layout::read_manifest(&place.pieces, id) {
            Ok(Ok(manifest)) if manifest.size_bytes() == size_bytes => {
                self.state().blobs.insert(id, Entry::new(size_bytes, None));
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

    pub(super) fn scan_partial(&self) -> Result<(), BlobError> {
        for name in layout::file_names(&self.layout().partial)? {
            match self.layout().transfer(&name, |id| self.has(id)) {
                Some((id, size_bytes)) => {
                    self.state().transfers.insert(id, Transfer::new(size_bytes, false));
                }
                None => layout::remove_file(&self.layout().partial.join(name))?,
            }
        }
        Ok(())
    }
}
