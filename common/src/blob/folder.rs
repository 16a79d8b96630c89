//! A store's folder looked at from outside, as backups and checks do: it may belong to another process, and nothing in it
//! is changed but what the caller asks for by name.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use crate::{
    blob::{
        BlobInfo,
        layout::{self, InShard, Layout},
    },
    durable::{self, Context, FileError},
    id::BlobId,
};

/// The folder of a [`BlobStore`](crate::blob::BlobStore) that need not be ours.
#[derive(Debug)]
pub struct BlobFolder(Layout);

/// What lies in the folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlobListing {
    /// Finished blobs by name, with the size of their data; not looked into.
    pub blobs: Vec<BlobInfo>,
    /// Temporary files that a stop has left; a store clears them when it opens.
    pub leftovers: Vec<PathBuf>,
    /// Files that are nothing of a store's.
    pub strangers: Vec<PathBuf>,
}

/// Why a blob cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobFault {
    /// There is no such blob.
    Missing,
    /// What is there is not what its name says; what is wrong with it.
    Damaged(String),
}

impl BlobFolder {
    /// The store in `folder`; one that is not there has no blobs.
    pub fn at(folder: &Path) -> Self {
        Self(Layout::at(folder))
    }

    /// Everything in the folder but unfinished transfers and the quarantine, in the order of names.
    pub fn list(&self) -> Result<BlobListing, FileError> {
        let mut listing = BlobListing::default();
        for name in names(&self.0.root)? {
            if Layout::is_shard(&name) {
                self.list_shard(&self.0.root.join(name), &mut listing)?;
            } else if !matches!(name.as_str(), "partial" | "quarantine") {
                listing.strangers.push(self.0.root.join(name));
            }
        }
        listing.blobs.sort_unstable();
        for name in names(&self.0.partial)? {
            if self
                .0
                .transfer(&name, |id| listing.blobs.binary_search_by_key(&id, |blob| blob.id).is_ok())
                .is_none()
            {
                listing.leftovers.push(self.0.partial.join(name));
            }
        }
        Ok(listing)
    }

    fn list_shard(&self, shard: &Path, listing: &mut BlobListing) -> Result<(), FileError> {
        for name in names(shard)? {
            match self.0.in_shard(shard, &name) {
                InShard::Blob(id) => {
                    let path = shard.join(name);
                    let size_bytes = fs::metadata(&path).context("look at", &path)?.len();
                    listing.blobs.push(BlobInfo { id, size_bytes });
                }
                InShard::Pieces => {}
                InShard::Leftover => listing.leftovers.push(shard.join(name)),
                InShard::Stranger => listing.strangers.push(shard.join(name)),
            }
        }
        Ok(())
    }

    /// Reads a blob from its first byte to its last, each piece checked before `each` gets it. The outer error is what
    /// `each` or the system says.
    pub fn read<E: From<FileError>>(
        &self,
        id: BlobId,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<(), BlobFault>, E> {
        let place = self.0.place(id);
        let opened = File::open(&place.data).context("open", &place.data);
        let (file, manifest) =
            match opened.and_then(|file| Ok((file, layout::read_manifest(&place.pieces, id)?))) {
                Ok((file, Ok(manifest))) => (file, manifest),
                Ok((_, Err(problem))) => return Ok(Err(BlobFault::Damaged(problem))),
                Err(error) if error.is_missing() && place.data.exists() => {
                    return Ok(Err(BlobFault::Damaged("its manifest is missing".to_owned())));
                }
                Err(error) if error.is_missing() => return Ok(Err(BlobFault::Missing)),
                Err(error) => return unreadable(error),
            };
        let length = file.metadata().context("look at", &place.data)?.len();
        if length != manifest.size_bytes() {
            let problem = format!("it has {length} bytes instead of {}", manifest.size_bytes());
            return Ok(Err(BlobFault::Damaged(problem)));
        }
        for index in 0..manifest.piece_count() {
            match layout::read_piece(&file, &manifest, index).context("read", &place.data) {
                Ok(Ok(bytes)) => each(&bytes)?,
                Ok(Err(problem)) => return Ok(Err(BlobFault::Damaged(problem.to_string()))),
                Err(error) => return unreadable(error),
            }
        }
        Ok(Ok(()))
    }

    /// Puts a damaged blob into quarantine, as the store itself would. For the folder's owner alone.
    pub fn quarantine(&self, id: BlobId) -> Result<PathBuf, FileError> {
        durable::create_folder(&self.0.quarantine)?;
        self.0.quarantine(id)
    }
}

/// A disk that cannot read its own bytes back has damaged them; any other error says nothing about the blob.
fn unreadable<E: From<FileError>>(error: FileError) -> Result<Result<(), BlobFault>, E> {
    if error.source.raw_os_error() == Some(Errno::IO.raw_os_error()) {
        return Ok(Err(BlobFault::Damaged(error.to_string())));
    }
    Err(error.into())
}

/// The names in a folder, in order; none if there is no such folder.
fn names(folder: &Path) -> Result<Vec<String>, FileError> {
    match layout::file_names(folder) {
        Ok(mut names) => {
            names.sort_unstable();
            Ok(names)
        }
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
