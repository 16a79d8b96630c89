//! The texts that trainers read: each dataset as one file, put together from its blobs.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use hatchery_common::{
    blob::{BlobError, BlobStore},
    dataset::{DatasetManifest, SEPARATOR},
    digest::Digest,
    durable::{self, FileError},
    id::{BlobId, DatasetId},
};
use hatchery_net::{RateLimit, blocking};

use super::{
    error::{CorpusError, FetchError},
    fetch::Fetcher,
    keyed_locks::KeyedLocks,
};
use crate::files::{UNFINISHED, finished_names, remove_file};

/// Corpora that are kept; the least recently used beyond them go.
const KEPT_MAX: usize = 8;
/// Extension of the file that holds a corpus's digest.
const DIGEST_EXTENSION: &str = "digest";
/// Length of that file.
const DIGEST_BYTES_MAX: u64 = 64;

/// The corpora in a folder.
#[derive(Clone)]
pub(crate) struct Corpora {
    folder: PathBuf,
    fetcher: Fetcher,
    at_work: KeyedLocks<DatasetId>,
    free_disk_bytes_min: u64,
}

impl Corpora {
    /// Those in a folder, which must exist.
    pub(crate) fn new(folder: PathBuf, fetcher: Fetcher, free_disk_bytes_min: u64) -> Self {
        Self { folder, fetcher, at_work: KeyedLocks::default(), free_disk_bytes_min }
    }

    /// Removes what an earlier agent left unfinished in the folder.
    pub(crate) fn clear_unfinished(folder: &Path) -> Result<(), FileError> {
        finished_names(folder).map(drop)
    }

    /// The corpus of a dataset, verified; fetched if it is not here or was damaged. `on_bytes` hears how many bytes are
    /// here, and of how many.
    pub(crate) async fn fetch(
        &self,
        id: DatasetId,
        mut on_bytes: impl FnMut(u64, u64) + Send,
    ) -> Result<PathBuf, FetchError> {
        let _alone = self.at_work.lock(id).await;
        let path = self.folder.join(id.to_string());
        let found = path.clone();
        if blocking(move || is_intact(&found)).await {
            touch(&path);
            return Ok(path);
        }
        let manifest = self.fetcher.coordinator().clients().await.agents.dataset_manifest(id).await?;
        let blobs: Vec<BlobId> = manifest.files().iter().map(|file| file.blob).collect();
        let named: Vec<(BlobId, u64)> =
            manifest.files().iter().map(|file| (file.blob, file.size_bytes)).collect();
        let pins = self.fetcher.store().pin(blobs.clone());
        let total_bytes = manifest.corpus_bytes();
        let mut done_bytes = 0;
        self.fetcher
            .blobs(&named, &RateLimit::new(None), |more_bytes| {
                done_bytes += more_bytes;
                on_bytes(done_bytes.min(total_bytes), total_bytes);
            })
            .await?;
        let (corpora, target) = (self.clone(), path.clone());
        blocking(move || {
            let made = corpora.assemble(&manifest, &target);
            drop(pins);
            corpora.fetcher.store().remove_unused(&blobs)?;
            corpora.remove_oldest();
            Ok::<(), FetchError>(made?)
        })
        .await?;
        Ok(path)
    }

    /// Writes the files one after the other. The digest is written last and belongs to the bytes that were written.
    fn assemble(&self, manifest: &DatasetManifest, path: &Path) -> Result<(), CorpusError> {
        let failed = |error| FileError::new("write", path, error);
        let (needed_bytes, free_bytes) =
            (manifest.corpus_bytes(), self.fetcher.store().blobs().free_bytes()?);
        if free_bytes < needed_bytes.saturating_add(self.free_disk_bytes_min) {
            let folder = self.folder.clone();
            return Err(BlobError::Full {
                folder,
                needed_bytes,
                free_bytes,
                free_bytes_min: self.free_disk_bytes_min,
            }
            .into());
        }
        let unfinished =
            tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder).map_err(failed)?;
        let mut corpus =
            Digesting { file: BufWriter::new(unfinished.as_file()), hasher: blake3::Hasher::new(), len: 0 };
        for (index, file) in manifest.files().iter().enumerate() {
            if index > 0 {
                corpus.write_all(SEPARATOR).map_err(failed)?;
            }
            copy_blob(self.fetcher.store().blobs(), file.blob, &mut corpus, path)?;
        }
        corpus.flush().map_err(failed)?;
        let (found, expected) = (corpus.len, manifest.corpus_bytes());
        let digest = Digest::from_bytes(*corpus.hasher.finalize().as_bytes());
        drop(corpus);
        if found != expected {
            return Err(CorpusError::Length { found, expected });
        }
        durable::sync_file(unfinished.as_file(), path)?;
        remove_file(&digest_path(path))?;
        durable::rename(&unfinished.into_temp_path().keep().map_err(|error| failed(error.error))?, path)?;
        durable::write_atomically(&digest_path(path), digest.to_string().as_bytes())?;
        Ok(())
    }

    fn remove_oldest(&self) {
        let mut corpora: Vec<(SystemTime, PathBuf)> = fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_none())
            .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
            .collect();
        corpora.sort();
        for (_, path) in corpora.iter().rev().skip(KEPT_MAX) {
            if let Err(error) = remove_file(&digest_path(path)).and_then(|()| remove_file(path)) {
                tracing::warn!(%error, "cannot remove an old corpus");
            }
        }
    }
}

fn copy_blob(blobs: &BlobStore, id: BlobId, corpus: &mut impl Write, path: &Path) -> Result<(), CorpusError> {
    let reader = blobs.reader(id)?;
    for index in 0..reader.manifest().piece_count() {
        let piece = reader.read_piece(index)?;
        corpus.write_all(&piece).map_err(|error| FileError::new("write", path, error))?;
    }
    Ok(())
}

/// Whether a corpus is here and still has the digest that it was written with.
fn is_intact(path: &Path) -> bool {
    let Ok(written) = durable::read_limited(&digest_path(path), DIGEST_BYTES_MAX) else { return false };
    let mut hasher = blake3::Hasher::new();
    let hashed = File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ()));
    let intact = hashed.is_ok() && hasher.finalize().to_hex().as_bytes() == written;
    if !intact {
        tracing::warn!(corpus = %path.display(), "a corpus is damaged; fetching it again");
    }
    intact
}

/// Marks a corpus as just used.
fn touch(path: &Path) {
    let touched =
        File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(%error, corpus = %path.display(), "cannot record that a corpus is in use");
    }
}

fn digest_path(path: &Path) -> PathBuf {
    path.with_extension(DIGEST_EXTENSION)
}

/// Hashes and counts what it writes.
struct Digesting<W> {
    file: W,
    hasher: blake3::Hasher,
    len: u64,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
