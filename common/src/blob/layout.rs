//! Where a store keeps what, and the few things it does with files beside reading and writing them.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    blob::{MANIFEST_BYTES_MAX, ManifestError, PieceManifest},
    digest::Digest,
    durable::{self, Context, FileError},
    id::BlobId,
};

/// Most damaged blobs that are kept for a look at them; the oldest make room.
const QUARANTINE_BLOBS_MAX: usize = 8;
/// Mode of finished data: nobody changes it, the store's owner included.
const MODE_DATA: u32 = 0o400;

/// The folders of a store.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    pub(super) partial: PathBuf,
    pub(super) quarantine: PathBuf,
}

/// The two files of a finished blob.
pub(super) struct Place {
    pub(super) folder: PathBuf,
    pub(super) data: PathBuf,
    pub(super) pieces: PathBuf,
}

/// A file beside finished blobs.
pub(super) enum InShard {
    /// A blob's data, in its place.
    Blob(BlobId),
    /// The manifest of a blob whose data is there.
    Pieces,
    /// What a stop has left behind.
    Leftover,
    /// Nothing of ours.
    Stranger,
}

/// The three files of an unfinished transfer.
pub(super) struct PartialPlace {
    pub(super) data: PathBuf,
    pub(super) pieces: PathBuf,
    pub(super) have: PathBuf,
}

impl Layout {
    /// The layout in `root`, whether it is there or not.
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), partial: root.join("partial"), quarantine: root.join("quarantine") }
    }

    pub(super) fn create(root: &Path) -> Result<Self, FileError> {
        let layout = Self::at(root);
        durable::create_folder(&layout.partial)?;
        durable::create_folder(&layout.quarantine)?;
        Ok(layout)
    }

    pub(super) fn place(&self, id: BlobId) -> Place {
        let name = id.to_string();
        let folder = self.root.join(&name[..2]);
        Place {
            data: folder.join(format!("{name}.data")),
            pieces: folder.join(format!("{name}.pieces")),
            folder,
        }
    }

    pub(super) fn partial_place(&self, id: BlobId) -> PartialPlace {
        let file = |kind: &str| self.partial.join(format!("{id}.{kind}"));
        PartialPlace { data: file("data"), pieces: file("pieces"), have: file("have") }
    }

    /// The folders that finished blobs lie in, as far as there are any.
    pub(super) fn shards(&self) -> Result<Vec<PathBuf>, FileError> {
        let names = file_names(&self.root)?;
        Ok(names.iter().filter(|name| Self::is_shard(name)).map(|name| self.root.join(name)).collect())
    }

    /// Whether a folder called `name` holds finished blobs.
    pub(super) fn is_shard(name: &str) -> bool {
        name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// What the file `name` in `shard` is.
    pub(super) fn in_shard(&self, shard: &Path, name: &str) -> InShard {
        let path = shard.join(name);
        let (stem, kind) = name.rsplit_once('.').unwrap_or((name, ""));
        match (stem.parse::<BlobId>(), kind) {
            (Ok(id), "data") if self.place(id).data == path => InShard::Blob(id),
            (Ok(_), "pieces") if path.with_extension("data").exists() => InShard::Pieces,
            _ if kind == "pieces" || name.starts_with(".writing-") => InShard::Leftover,
            _ => InShard::Stranger,
        }
    }

    /// The unfinished transfer, and its whole size in bytes, that the file `name` among the transfers belongs to; none if
    /// the file is a leftover. `has` says whether a blob is finished.
    pub(super) fn transfer(&self, name: &str, has: impl Fn(BlobId) -> bool) -> Option<(BlobId, u64)> {
        let (stem, kind) = name.rsplit_once('.')?;
        let id = stem.parse::<BlobId>().ok().filter(|&id| !has(id))?;
        let manifest = read_manifest(&self.partial_place(id).pieces, id).ok()?.ok()?;
        matches!(kind, "data" | "pieces" | "have").then_some((id, manifest.size_bytes()))
    }

    /// Takes a damaged blob out of the way, and returns where its data is now. A missing file is no obstacle.
    pub(super) fn quarantine(&self, id: BlobId) -> Result<PathBuf, FileError> {
        let place = self.place(id);
        let kept = self.quarantine.join(format!("{id}.data"));
        for (from, to) in [(&place.data, &kept), (&place.pieces, &kept.with_extension("pieces"))] {
            ignore_missing(durable::rename(from, to))?;
        }
        ignore_missing(durable::sync_folder(&place.folder))?;
        self.prune_quarantine()?;
        Ok(kept)
    }

    fn prune_quarantine(&self) -> Result<(), FileError> {
        let mut kept: Vec<(i64, PathBuf)> = Vec::new();
        let paths = file_names(&self.quarantine)?.into_iter().map(|name| self.quarantine.join(name));
        for path in paths.filter(|path| path.extension().is_some_and(|kind| kind == "data")) {
            kept.push((fs::metadata(&path).context("look at", &path)?.ctime(), path));
        }
        kept.sort();
        let surplus = kept.len().saturating_sub(QUARANTINE_BLOBS_MAX);
        for (_, path) in &kept[..surplus] {
            remove_file(path)?;
            remove_file(&path.with_extension("pieces"))?;
        }
        Ok(())
    }

    /// What other processes than root may still fill, in bytes.
    pub(super) fn free_bytes(&self) -> Result<u64, FileError> {
        let stat = rustix::fs::statvfs(&self.root)
            .map_err(io::Error::from)
            .context("read the free space of", &self.root)?;
        Ok(stat.f_bavail * stat.f_frsize)
    }
}

/// What tells that a file is still the one that was checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    inode: u64,
    size_bytes: u64,
    modified: SystemTime,
}

impl Stamp {
    pub(super) fn of(file: &File, path: &Path) -> Result<Self, FileError> {
        let metadata = file.metadata().context("look at", path)?;
        let modified = metadata.modified().context("look at", path)?;
        Ok(Self { inode: metadata.ino(), size_bytes: metadata.len(), modified })
    }

    /// Whether `path` is still the same file, whatever its bytes are now.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|metadata| metadata.ino() == self.inode)
    }
}

/// The manifest in a file, if it is the one that `id` names; otherwise what is wrong with it.
pub(super) fn read_manifest(path: &Path, id: BlobId) -> Result<Result<PieceManifest, String>, FileError> {
    let bytes = durable::read_limited(path, MANIFEST_BYTES_MAX as u64)?;
    if BlobId(Digest::of(&bytes)) != id {
        return Ok(Err("its manifest has changed".to_owned()));
    }
    Ok(PieceManifest::decode(&bytes).map_err(|error| error.to_string()))
}

/// Reads piece `index` and checks it; the inner error says what is wrong with the bytes.
pub(super) fn read_piece(
    file: &File,
    manifest: &PieceManifest,
    index: u32,
) -> io::Result<Result<Vec<u8>, ManifestError>> {
    let read = read_unchecked(file, manifest, index)?;
    Ok(read.and_then(|bytes| manifest.verify(index, &bytes).map(|()| bytes)))
}

/// Reads piece `index` of a file that may be too short; its bytes are not looked at.
pub(super) fn read_unchecked(
    file: &File,
    manifest: &PieceManifest,
    index: u32,
) -> io::Result<Result<Vec<u8>, ManifestError>> {
    let Some(range) = manifest.piece_range(index) else {
        return Ok(Err(ManifestError::NoSuchPiece { index, count: manifest.piece_count() }));
    };
    let expected = range.end - range.start;
    let mut bytes = vec![0; expected as usize];
    match file.read_exact_at(&mut bytes, range.start) {
        Ok(()) => Ok(Ok(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Err(ManifestError::WrongPiece { index, expected, found: 0 }))
        }
        Err(error) => Err(error),
    }
}

/// Gives a new file its full length on the disk now, so that a full disk shows before the first piece.
pub(super) fn preallocate(file: &File, size_bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    if size_bytes > 0 {
        use rustix::{fs::FallocateFlags, io::Errno};
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size_bytes) {
            Ok(()) => return Ok(()),
            // File systems that cannot do it get the length alone.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    file.set_len(size_bytes)
}

/// Makes finished data read-only.
pub(super) fn protect(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(MODE_DATA))
}

/// Removes a file, which may be gone already.
pub(super) fn remove_file(path: &Path) -> Result<(), FileError> {
    ignore_missing(fs::remove_file(path).context("remove", path))
}

/// The names in a folder that are text; nothing of ours has another.
pub(super) fn file_names(folder: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).context("list", folder)? {
        let entry = entry.context("list", folder)?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

fn ignore_missing(result: Result<(), FileError>) -> Result<(), FileError> {
    match result {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}
