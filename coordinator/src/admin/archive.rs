//! The container of a backup: a plain tar file whose last entry, `seal`, is the BLAKE3 of all bytes before that entry. No byte
//! of the file is outside of the seal, or of what the seal's own entry must look like.
//!
//! By hand: `tar tf FILE` lists it, and `head -c -2048 FILE | b3sum` gives what `tar xOf FILE seal` says.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use hatchery_common::{
    digest::{Digest, Hasher},
    durable::FileError,
    time::Timestamp,
};
use tar::{EntryType, Header};

use super::{AdminError, Watcher, advance};

/// The unit of a tar file.
const BLOCK_BYTES: u64 = 512;
const SEAL_NAME: &str = "seal";
/// The seal's header and content, a block each, and the two empty blocks that end a tar file.
const SEAL_BYTES: u64 = 4 * BLOCK_BYTES;
/// Read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// A backup being written.
pub(super) struct Writer {
    file: File,
    hasher: Hasher,
    made_at: Timestamp,
    /// Bytes that the entry begun still lacks, and with what it is filled up then.
    lacks_bytes: u64,
    fill_bytes: u64,
}

/// A place between two entries to go back to.
pub(super) struct Mark {
    at: u64,
    hasher: Hasher,
}

impl Writer {
    /// Writes to an empty file; entries get the time `made_at`.
    pub(super) fn new(file: File, made_at: Timestamp) -> Self {
        Self { file, hasher: Hasher::default(), made_at, lacks_bytes: 0, fill_bytes: 0 }
    }

    /// Begins the entry `name` of `size_bytes`.
    pub(super) fn begin(&mut self, name: &str, size_bytes: u64) -> io::Result<()> {
        let header = header(name, size_bytes, self.made_at)?;
        self.put(header.as_bytes())?;
        self.lacks_bytes = size_bytes;
        self.fill_bytes = size_bytes.next_multiple_of(BLOCK_BYTES) - size_bytes;
        Ok(())
    }

    /// The next bytes of the entry.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.lacks_bytes.checked_sub(bytes.len() as u64);
        self.lacks_bytes = left.ok_or_else(|| io::Error::other("a file grew while it was copied"))?;
        self.put(bytes)
    }

    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.lacks_bytes > 0 {
            return Err(io::Error::other("a file shrank while it was copied"));
        }
        let fill = [0; BLOCK_BYTES as usize];
        self.put(&fill[..self.fill_bytes as usize])
    }

    /// Here, between two entries.
    pub(super) fn mark(&mut self) -> io::Result<Mark> {
        Ok(Mark { at: self.file.stream_position()?, hasher: self.hasher.clone() })
    }

    /// Forgets everything since `mark`.
    pub(super) fn go_back(&mut self, mark: Mark) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(mark.at))?;
        self.file.set_len(mark.at)?;
        self.hasher = mark.hasher;
        Ok(())
    }

    /// Seals it, and gives the file back, not yet synced, and the number of its bytes.
    pub(super) fn finish(mut self) -> io::Result<(File, u64)> {
        let seal = seal(self.hasher.digest())?;
        self.file.write_all(&seal)?;
        let size_bytes = self.file.stream_position()?;
        Ok((self.file, size_bytes))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }
}

fn header(name: &str, size_bytes: u64, at: Timestamp) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size_bytes);
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(at.0 / 1000);
    header.set_cksum();
    Ok(header)
}

/// The last bytes of a backup whose other bytes have this digest.
fn seal(digest: Digest) -> io::Result<Vec<u8>> {
    let text = format!("{digest}\n");
    let mut bytes = header(SEAL_NAME, text.len() as u64, Timestamp(0))?.as_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(SEAL_BYTES as usize, 0);
    Ok(bytes)
}

/// A backup to be read, sealed as it was written.
pub(super) struct Reader {
    archive: tar::Archive<io::Take<File>>,
}

/// An entry: its name, its size in bytes, and its content.
pub(super) type Entry<'a> = tar::Entry<'a, io::Take<File>>;

impl Reader {
    /// Opens the file at `path` and reads it once, to see that every byte is as it was written.
    pub(super) fn open(path: &Path, watcher: &mut dyn Watcher) -> Result<Self, AdminError> {
        let failed = |error| FileError::new("read", path, error);
        let damaged = |why: &str| AdminError::Damaged { path: path.to_owned(), why: why.to_owned() };
        let mut file = File::open(path).map_err(|error| FileError::new("open", path, error))?;
        let metadata = file.metadata().map_err(failed)?;
        let size_bytes = metadata.len();
        if !metadata.is_file() || size_bytes < SEAL_BYTES {
            return Err(damaged("it is too short"));
        }
        watcher.phase("checking the backup", Some(size_bytes));
        let sealed_bytes = size_bytes - SEAL_BYTES;
        let mut hasher = Hasher::default();
        let mut sealed = (&file).take(sealed_bytes);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = sealed.read(&mut buffer).map_err(failed)?;
            if count == 0 {
                break;
            }
            hasher.update(&buffer[..count]);
            advance(watcher, count as u64)?;
        }
        let mut found = Vec::new();
        (&file).take(SEAL_BYTES + 1).read_to_end(&mut found).map_err(failed)?;
        if found != seal(hasher.digest()).map_err(failed)? {
            return Err(damaged("its contents do not match its seal"));
        }
        advance(watcher, SEAL_BYTES)?;
        file.rewind().map_err(failed)?;
        Ok(Self { archive: tar::Archive::new(file.take(sealed_bytes)) })
    }

    /// The entries in their order, just as they stand: no link is followed and no other name is taken from elsewhere.
    pub(super) fn entries(&mut self) -> io::Result<impl Iterator<Item = io::Result<Entry<'_>>>> {
        Ok(self.archive.entries()?.raw(true))
    }
}

/// The name of a plain file, or what else it is.
pub(super) fn name_of(entry: &Entry<'_>) -> Result<String, String> {
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    if entry.header().entry_type() == EntryType::Regular {
        Ok(name)
    } else {
        Err(format!("it contains {name:?}, which is not a plain file"))
    }
}
