//! What a store does with its folder when it is opened.

use std::{fs, path::Path};

use tracing::warn;

use crate::{
    blob::{
        BlobError, BlobStore, layout,
        store::{Entry, Transfer},
    },
    durable::Context,
    id::BlobId,
};

impl BlobStore {
    pub(super) fn scan_shard(&self, shard: &Path) -> Result<(), BlobError> {
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

    pub(super) fn scan_partial(&self) -> Result<(), BlobError> {
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
}
