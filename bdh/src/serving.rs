//! The weights of a checkpoint once more in bf16, for nodes that only answer: half of the bytes on the wire and on disks.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use half::bf16;
use hatchery_common::{
    checkpoint::{MODEL_FILE, SERVING_FILE},
    durable::{FileError, write_atomically_with},
};
use safetensors::{Dtype, tensor::TensorInfo};
use serde::Serialize;

use crate::load::{LoadError, WeightFile};

/// The header is filled up to a multiple of this many bytes.
const HEADER_ALIGNMENT: usize = 8;

/// Why there are no such weights.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// The weights cannot be read, or a number has no place in bf16.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A header whose bytes follow from what is in it, whatever the order of the source's.
#[derive(Serialize)]
struct Header {
    #[serde(rename = "__metadata__", skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

/// Writes `model-bf16.safetensors` beside the `model.safetensors` in a checkpoint `folder`: the same tensors and metadata,
/// each number rounded to the nearest that bf16 has, of two as near to the even one. The same weights give the same bytes.
/// Durable when it returns; what stood there is replaced at once.
pub fn write_serving_weights(folder: &Path) -> Result<(), ServingError> {
    let mut source = WeightFile::open(folder.join(MODEL_FILE))?;
    let names = source.header.offset_keys();
    let header = header(&source, &names)?;
    // A source that turns out to be wrong breaks off the writing, and is the error that counts.
    let mut wrong = None;
    let written = write_atomically_with(&folder.join(SERVING_FILE), |file| {
        copy(&mut source, &names, &header, file).unwrap_or_else(|error| {
            wrong = Some(error);
            Err(io::ErrorKind::InvalidData.into())
        })
    });
    match wrong {
        Some(error) => Err(error.into()),
        None => Ok(written?),
    }
}

/// The new file's first bytes: the length of its header, and the header.
fn header(source: &WeightFile, names: &[String]) -> Result<Vec<u8>, LoadError> {
    let metadata = source.header.metadata().iter().flatten();
    let metadata = metadata.map(|(key, value)| (key.clone(), value.clone())).collect();
    let (mut tensors, mut end) = (BTreeMap::new(), 0);
    for name in names {
        let info = source.header.info(name).expect("the name is the header's own");
        if !matches!(info.dtype, Dtype::F32 | Dtype::F64 | Dtype::BF16 | Dtype::F16) {
            return Err(source.wrong(name, format!("holds {}, which is not rounded to BF16", info.dtype)));
        }
        let start = end;
        end += info.shape.iter().product::<usize>() * size_of::<bf16>();
        let info = TensorInfo { dtype: Dtype::BF16, shape: info.shape.clone(), data_offsets: (start, end) };
        tensors.insert(name.clone(), info);
    }
    let text = serde_json::to_vec(&Header { metadata, tensors });
    let mut text = text.expect("text and numbers are always JSON");
    text.resize(text.len().next_multiple_of(HEADER_ALIGNMENT), b' ');
    Ok([&(text.len() as u64).to_le_bytes(), text.as_slice()].concat())
}

/// Fills the new file. The outer error is of the source, the inner one of the new file.
fn copy(
    source: &mut WeightFile,
    names: &[String],
    header: &[u8],
    file: &mut File,
) -> Result<io::Result<()>, LoadError> {
    let mut out = BufWriter::new(file);
    let mut written = out.write_all(header);
    for name in names {
        let mut beyond = None;
        source.read_parts(name, |index, part| {
            for (place, value) in part.iter().enumerate() {
                let rounded = bf16::from_f32(*value);
                if !rounded.is_finite() {
                    beyond = beyond.or(Some((index + place, *value)));
                }
                if written.is_ok() {
                    written = out.write_all(&rounded.to_le_bytes());
                }
            }
            Ok(())
        })?;
        if let Some((index, value)) = beyond {
            return Err(source.wrong(name, format!("is {value} at index {index}, too large for BF16")));
        }
    }
    Ok(written.and_then(|()| out.flush()))
}
