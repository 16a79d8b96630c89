//! Writing the folder: under a temporary name, synced, renamed; it is whole or not there.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, TRAINED_BLOCK_KEY},
    durable::{FileError, create_folder, rename, sync_file, sync_folder},
};
use safetensors::{Dtype, tensor::TensorInfo};

use super::{ImportError, Imported};

/// Writes the two public files of a checkpoint into a new folder.
pub(super) fn write(imported: &Imported, folder: &Path) -> Result<(), ImportError> {
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        return Err(ImportError::Occupied { folder: folder.to_owned() });
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_folder(parent)?;
    let partial = partial_beside(folder);
    if let Err(error) = fill(imported, &partial).and_then(|()| rename(&partial, folder)) {
        // The error that matters is the first one.
        let _left = fs::remove_dir_all(&partial);
        return Err(error.into());
    }
    Ok(())
}

/// `.NAME.PROCESS.partial` in the same folder, so that it can be renamed.
fn partial_beside(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.{}.partial", std::process::id()))
}

fn fill(imported: &Imported, folder: &Path) -> Result<(), FileError> {
    fs::create_dir(folder).map_err(|source| FileError::new("create the folder", folder, source))?;
    write_file(&folder.join(CONFIG_FILE), |out| {
        serde_json::to_writer_pretty(&mut *out, imported.config())?;
        out.write_all(b"\n")
    })?;
    write_file(&folder.join(MODEL_FILE), |out| write_weights(imported, out))?;
    sync_folder(folder)
}

fn write_file(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FileError> {
    let write = || {
        let mut out = BufWriter::new(File::create_new(path)?);
        fill(&mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)
    };
    let file = write().map_err(|source| FileError::new("write", path, source))?;
    sync_file(&file, path)
}

/// The safetensors form, f32, the header in the order of its names: one state gives one file.
fn write_weights(imported: &Imported, out: &mut impl Write) -> io::Result<()> {
    const HEADER_ALIGNMENT: usize = 8;
    let mut metadata = serde_json::Map::from_iter([("format".to_owned(), "pt".into())]);
    metadata
        .extend(imported.trained_block().map(|block| (TRAINED_BLOCK_KEY.into(), block.to_string().into())));
    let mut header = serde_json::Map::from_iter([("__metadata__".to_owned(), metadata.into())]);
    let mut end = 0;
    for ((name, shape), numbers) in imported.config().weights().into_iter().zip(imported.weights()) {
        let start = end;
        end += numbers.len() * size_of::<f32>();
        let info = TensorInfo { dtype: Dtype::F32, shape, data_offsets: (start, end) };
        header.insert(name.to_owned(), serde_json::to_value(info)?);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for number in imported.weights().iter().flatten() {
        out.write_all(&number.to_le_bytes())?;
    }
    Ok(())
}
