//! From files on disk to a dataset's manifest.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use super::{DatasetError, DatasetFile, DatasetManifest, Scan, SourceFile};
use crate::{blob::PieceManifest, field::FieldError, id::Name};

/// Why files cannot become a dataset.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// A file cannot be read, or has changed since it was found.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The list of files is not acceptable.
    #[error("invalid dataset: {0}")]
    Manifest(#[from] FieldError),
}

/// Reads every file once, and gives the dataset's manifest and the files with their pieces, as they are sent.
/// `on_bytes` hears how many more bytes were read. This waits for the disk: call it off a runtime's threads.
pub fn hash_scan(
    scan: &Scan,
    name: &Name,
    mut on_bytes: impl FnMut(u64),
) -> Result<(DatasetManifest, Vec<(PieceManifest, PathBuf)>), HashError> {
    let mut files = Vec::with_capacity(scan.files.len());
    let mut sources = Vec::with_capacity(scan.files.len());
    for file in &scan.files {
        let manifest = hash_file(file, &mut on_bytes)?;
        files.push(DatasetFile {
            path: file.name.clone(),
            blob: manifest.id(),
            size_bytes: manifest.size_bytes(),
        });
        sources.push((manifest, file.path.clone()));
    }
    Ok((DatasetManifest::new(name.clone(), files)?, sources))
}

fn hash_file(file: &SourceFile, on_bytes: &mut impl FnMut(u64)) -> Result<PieceManifest, DatasetError> {
    let failed = |source| DatasetError::Read { path: file.path.clone(), source };
    let opened = File::open(&file.path).map_err(failed)?;
    let hashed = PieceManifest::of_reader(Counted { file: &opened, on_bytes }, file.size_bytes);
    hashed.map_err(|error| match opened.metadata() {
        Ok(metadata) if metadata.len() != file.size_bytes => DatasetError::Changed {
            path: file.path.clone(),
            expected: file.size_bytes,
            found: metadata.len(),
        },
        _ => failed(error),
    })
}

/// Tells how many bytes are read.
struct Counted<'a, F> {
    file: &'a File,
    on_bytes: &'a mut F,
}

impl<F: FnMut(u64)> Read for Counted<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        (self.on_bytes)(count as u64);
        Ok(count)
    }
}
