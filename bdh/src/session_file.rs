//! The file that a session is put away in.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `HATCHSES` |
//! | 4 | version of this form; 1 |
//! | 4 | length of the header |
//! | so many | the header, as JSON |
//! | 4 each | logits |
//! | 2 or 4 each | the state |
//! | 32 | BLAKE3 of all before |
//!
//! Numbers are little-endian. How many follow the header is known from the model and the window, and the length of the
//! file is checked against it before they are read.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use hatchery_common::{
    digest::Digest,
    durable::{FileError, write_secret_with},
    field::{FieldError, check_range},
};
use serde::{Deserialize, Serialize};

use crate::{
    engine::{Engine, EngineError},
    model::Model,
    number::Precision,
    sampling::Sampler,
    session::Session,
};

const MAGIC: &[u8; 8] = b"HATCHSES";
const VERSION: u32 = 1;
/// Longest header: it has a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes of the file beside header and numbers.
const FRAME_BYTES: u64 = 8 + 4 + 4 + 32;
/// Far more than a stream can reach, and far from where counting would overflow.
const POSITION_MAX: u64 = 1 << 62;

/// Why a session cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The file is not there or cannot be read.
    #[error(transparent)]
    Unreadable(#[from] FileError),
    /// The file is not a session, or is cut, changed or hostile.
    #[error("{} is not a complete session file: {problem}; start a new session", file.display())]
    Damaged { file: PathBuf, problem: String },
    /// The file has a form that this program does not know.
    #[error(
        "{} is a session of form {version}, but this version reads form {VERSION}; continue it with the \
         version that saved it",
        file.display()
    )]
    Version { file: PathBuf, version: u32 },
    /// The state was made by another model.
    #[error(
        "the session in {} belongs to another model ({}, this one is {}); load the checkpoint of that \
         session",
        file.display(), saved.short(), given.short()
    )]
    OtherModel {
        file: PathBuf,
        /// [`Model::identity`] of the model that made the state.
        saved: Digest,
        /// That of the model given.
        given: Digest,
    },
    /// The state is kept in another precision than the model.
    #[error(
        "the session in {} was saved in {saved}, but the model is loaded in {given}; load it in {saved}",
        file.display()
    )]
    OtherPrecision {
        file: PathBuf,
        /// That of the state.
        saved: Precision,
        /// That of the model given.
        given: Precision,
    },
    /// The state does not fit into memory.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    model: Digest,
    precision: Precision,
    chunk_bytes: Option<u32>,
    position: u64,
    pending: Option<u8>,
    sampler: Sampler,
}

impl Header {
    fn check(&self) -> Result<(), FieldError> {
        check_range("position", self.position, 0, POSITION_MAX)?;
        if let Some(chunk_bytes) = self.chunk_bytes {
            check_range("chunk_bytes", chunk_bytes, 1, u32::MAX)?;
        }
        // Each draw has chosen a byte, and all but the last have been fed.
        check_range("sampler.draws", self.sampler.draws(), 0, self.position + 1)?;
        Ok(())
    }
}

/// Writes what comes through to the file and into the digest.
struct Hashed<T> {
    inner: T,
    hasher: blake3::Hasher,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, hasher: blake3::Hasher::new() }
    }
}

impl<T: Write> Hashed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Hashed<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn read_u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.read(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

impl Session {
    /// Puts the session into the file at `path`, whole and durably, or leaves what was there. Only this user may read
    /// it: a state tells of the bytes that made it.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        write_secret_with(path, |file| write(self, Hashed::new(file)))
    }

    /// Takes up the session in the file at `path`, which must have been saved over the same `model`. The file may come
    /// from anywhere: all of it is checked, and no more memory is taken than the model's state needs.
    pub fn load(path: &Path, model: Arc<Model>) -> Result<Self, SessionError> {
        load(path, model)
    }
}

fn write(session: &Session, mut file: Hashed<&mut File>) -> io::Result<()> {
    let header = serde_json::to_vec(&Header {
        model: session.engine.model().identity(),
        precision: session.engine.model().precision(),
        chunk_bytes: session.engine.chunk_bytes(),
        position: session.engine.position(),
        pending: session.pending,
        sampler: session.sampler.clone(),
    })?;
    file.write(MAGIC)?;
    file.write(&VERSION.to_le_bytes())?;
    file.write(&(header.len() as u32).to_le_bytes())?;
    file.write(&header)?;
    session.engine.write_numbers(&mut |bytes| file.write(bytes))?;
    let digest = file.hasher.finalize();
    file.inner.write_all(digest.as_bytes())
}

fn load(path: &Path, model: Arc<Model>) -> Result<Session, SessionError> {
    let unreadable = |source| FileError::new("read the session", path, source);
    // A named pipe, for instance, would block for ever.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::other("it is not a regular file")).into());
    }
    let file = File::open(path).map_err(unreadable)?;
    let file_bytes = file.metadata().map_err(unreadable)?.len();
    match read(Hashed::new(file), file_bytes, path, model) {
        Err(ReadError::Session(error)) => Err(error),
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(damaged(path, "it is truncated"))
        }
        Err(ReadError::Io(error)) => Err(unreadable(error).into()),
        Ok(session) => Ok(session),
    }
}

fn damaged(path: &Path, problem: impl ToString) -> SessionError {
    SessionError::Damaged { file: path.to_owned(), problem: problem.to_string() }
}

/// What reading can meet; `load` tells a file that ends from one that cannot be read.
enum ReadError {
    Io(io::Error),
    Session(SessionError),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<SessionError> for ReadError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

fn read(
    mut file: Hashed<File>,
    file_bytes: u64,
    path: &Path,
    model: Arc<Model>,
) -> Result<Session, ReadError> {
    let mut magic = [0; MAGIC.len()];
    file.read(&mut magic)?;
    if magic != *MAGIC {
        return Err(damaged(path, "it does not start like a session").into());
    }
    let version = file.read_u32()?;
    if version != VERSION {
        return Err(SessionError::Version { file: path.to_owned(), version }.into());
    }
    let header_bytes = file.read_u32()?;
    if header_bytes > HEADER_BYTES_MAX {
        return Err(damaged(
            path,
            format!("its header claims {header_bytes} bytes; the limit is {HEADER_BYTES_MAX}"),
        )
        .into());
    }
    let mut header = vec![0; header_bytes as usize];
    file.read(&mut header)?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|error| damaged(path, format!("its header is invalid: {error}")))?;
    header.check().map_err(|error| damaged(path, format!("its header is invalid: {error}")))?;
    if header.model != model.identity() {
        let (saved, given) = (header.model, model.identity());
        return Err(SessionError::OtherModel { file: path.to_owned(), saved, given }.into());
    }

    if header.precision != model.precision() {
        let (saved, given) = (header.precision, model.precision());
        return Err(SessionError::OtherPrecision { file: path.to_owned(), saved, given }.into());
    }

    let mut engine = Engine::at(model, header.chunk_bytes, header.position).map_err(SessionError::Engine)?;
    let expected = FRAME_BYTES + u64::from(header_bytes) + engine.numbers_bytes() as u64;
    if file_bytes != expected {
        return Err(damaged(path, format!("it has {file_bytes} bytes, but should have {expected}")).into());
    }
    engine.read_numbers(&mut |bytes| file.read(bytes))?;
    let digest = file.hasher.finalize();
    let mut saved = [0; blake3::OUT_LEN];
    file.inner.read_exact(&mut saved)?;
    if digest != saved {
        return Err(damaged(path, "its checksum does not match its content").into());
    }
    Ok(Session { engine, sampler: header.sampler, pending: header.pending })
}
