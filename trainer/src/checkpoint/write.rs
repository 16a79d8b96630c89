//! Writing a checkpoint folder: every file under a temporary folder, fsync, rename, fsync of the parent. The final name
//! stands for a whole checkpoint, at every instant.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, SyncSender},
    thread::{self, JoinHandle},
};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, TRAINING_FILE, folder_name},
    durable::{FileError, rename, sync_file, sync_folder},
    trainer::Metrics,
};
use safetensors::{Dtype, tensor::TensorInfo};

use super::{CheckpointError, Snapshot, snapshot::TensorFile};

/// Snapshots that may wait while one is written; a further one makes training wait, so that memory stays bounded.
const WAITING_MAX: usize = 1;

/// A checkpoint that is durable.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub folder: PathBuf,
    pub step: u64,
    /// What was known of the run.
    pub metrics: Metrics,
}

/// Writes snapshots one after the other on a thread of its own.
#[derive(Debug)]
pub struct Writer {
    waiting: SyncSender<Snapshot>,
    written: Receiver<Result<Written, CheckpointError>>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Writes into `parent`, which is made if it is not there.
    pub fn start(parent: &Path) -> Result<Self, CheckpointError> {
        fs::create_dir_all(parent)
            .map_err(|source| CheckpointError::Write(FileError::new("create the folder", parent, source)))?;
        let parent = parent.to_owned();
        let (waiting, snapshots) = mpsc::sync_channel::<Snapshot>(WAITING_MAX);
        let (results, written) = mpsc::channel();
        let thread = thread::spawn(move || {
            for snapshot in snapshots {
                // Nobody listens any more: the run has failed, and what is left need not be written.
                if results.send(write(&parent, &snapshot)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { waiting, written, thread })
    }

    /// Hands `snapshot` over; waits if too many do.
    pub fn submit(&self, snapshot: Snapshot) {
        // Fails only if the thread has panicked, which `finish` reports.
        let _ = self.waiting.send(snapshot);
    }

    /// What has been written since the last call.
    pub fn poll(&self) -> impl Iterator<Item = Result<Written, CheckpointError>> {
        self.written.try_iter()
    }

    /// Waits for all that was submitted.
    pub fn finish(self) -> Vec<Result<Written, CheckpointError>> {
        drop(self.waiting);
        let results = self.written.iter().collect();
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
        results
    }
}

/// Writes `snapshot` as a folder in `parent`. A folder of the same step that is there already is replaced.
pub fn write(parent: &Path, snapshot: &Snapshot) -> Result<Written, CheckpointError> {
    let name = folder_name(snapshot.cursor.step);
    let folder = parent.join(&name);
    let partial = parent.join(format!(".{name}.partial"));
    let replaced = parent.join(format!(".{name}.replaced"));
    write_folder(&partial, snapshot)
        .and_then(|()| {
            // A folder cannot be renamed onto a full one. The old one leaves first; were the machine to stop between the
            // two renames, the run would go on from the checkpoint before this one.
            remove_folder(&replaced)?;
            if folder.exists() {
                rename(&folder, &replaced)?;
            }
            rename(&partial, &folder)?;
            remove_folder(&replaced)
        })
        .map_err(CheckpointError::Write)?;
    Ok(Written { folder, step: snapshot.cursor.step, metrics: snapshot.cursor.metrics })
}

fn write_folder(folder: &Path, snapshot: &Snapshot) -> Result<(), FileError> {
    remove_folder(folder)?; // what a killed run left
    fs::create_dir(folder).map_err(|source| FileError::new("create the folder", folder, source))?;
    write_file(&folder.join(CONFIG_FILE), |out| write_json(out, &snapshot.config))?;
    write_file(&folder.join(MODEL_FILE), |out| snapshot.model.write_to(out))?;
    write_file(&folder.join(OPTIMIZER_FILE), |out| snapshot.optimizer.write_to(out))?;
    write_file(&folder.join(TRAINING_FILE), |out| write_json(out, &snapshot.cursor))?;
    sync_folder(folder)
}

fn write_file(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FileError> {
    const BUFFER_BYTES: usize = 1 << 20;
    let write = || {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, File::create_new(path)?);
        fill(&mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)
    };
    let file = write().map_err(|source| FileError::new("write", path, source))?;
    sync_file(&file, path)
}

fn remove_folder(folder: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", folder, error)),
        _ => Ok(()),
    }
}

fn write_json(out: &mut impl Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    out.write_all(b"\n")
}

impl TensorFile {
    /// Writes the safetensors form. Not by the crate's own writer, which keeps metadata in a hash map: the same state is
    /// to give the same bytes.
    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        const HEADER_ALIGNMENT: usize = 8;
        let mut header = serde_json::Map::new(); // sorted by key
        header.insert("__metadata__".into(), serde_json::to_value(&self.metadata)?);
        let mut end = 0;
        for tensor in &self.tensors {
            let start = end;
            end += tensor.bytes.len();
            let (shape, data_offsets) = (tensor.shape.clone(), (start, end));
            let info = TensorInfo { dtype: Dtype::F32, shape, data_offsets };
            header.insert(tensor.name.clone(), serde_json::to_value(info)?);
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        self.tensors.iter().try_for_each(|tensor| out.write_all(&tensor.bytes))
    }
}
