//! An open `model.safetensors`, checked before anything in it is believed.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use hatchery_common::{
    checkpoint::{CONFIG_FILE, TRAINED_BLOCK_KEY},
    field::{FieldError, check_range},
    model::ModelConfig,
    recipe::TrainSpec,
};
use safetensors::tensor::{Dtype, Metadata};

use super::error::LoadError;

/// Longest header of `model.safetensors`: six tensors and some metadata need a few KiB.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// How much of a tensor is read at once; a multiple of every number's size.
const READ_BYTES: usize = 1 << 20;
/// Most tensor names in an error.
const NAMES_SHOWN_MAX: usize = 8;
/// A parameter that the public code has and does not use.
const UNUSED_GATE: &str = "lm_gate";

/// What the public code saves beside the weights and a reader need not know: rotary frequencies, which follow from the
/// shape, and a gate that nothing uses.
pub(crate) fn is_passed_over(name: &str) -> bool {
    let is_frequencies =
        matches!(name.split('.').collect::<Vec<_>>()[..], ["attn", "freqs"] | ["attns", _, "freqs"]);
    name == UNUSED_GATE || is_frequencies
}

/// Opens a file that is one: a named pipe, for instance, would block for ever.
pub(crate) fn open_regular(path: &Path) -> io::Result<(File, u64)> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(path)?;
    let size_bytes = file.metadata()?.len();
    Ok((file, size_bytes))
}

/// An open `model.safetensors` whose header is checked against its length.
pub(crate) struct WeightFile {
    path: PathBuf,
    pub(crate) file: File,
    pub(crate) header: Metadata,
    /// Where the first tensor's bytes begin.
    pub(crate) data_start: u64,
}

impl WeightFile {
    pub(crate) fn open(path: PathBuf) -> Result<Self, LoadError> {
        let damaged = |problem: String| LoadError::Damaged { file: path.clone(), problem };
        let unreadable = |source| LoadError::Unreadable { file: path.clone(), source };
        let (mut file, size_bytes) = open_regular(&path).map_err(unreadable)?;
        let mut length = [0; 8];
        let room = size_bytes
            .checked_sub(length.len() as u64)
            .ok_or_else(|| damaged(format!("it has only {size_bytes} bytes")))?;
        file.read_exact(&mut length).map_err(unreadable)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX || header_bytes > room {
            return Err(damaged(format!(
                "its header claims {header_bytes} bytes, but {room} follow and the limit is \
                 {HEADER_BYTES_MAX}"
            )));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(unreadable)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| damaged(format!("its header is invalid: {error}")))?;
        let data_bytes = room - header_bytes;
        if header.data_len() as u64 != data_bytes {
            return Err(damaged(format!(
                "its header lists {} bytes of weights, but the file has {data_bytes}",
                header.data_len()
            )));
        }
        let data_start = length.len() as u64 + header_bytes;
        Ok(Self { path, file, header, data_start })
    }

    pub(crate) fn wrong(&self, tensor: &str, problem: String) -> LoadError {
        LoadError::Tensor { file: self.path.clone(), tensor: tensor.to_owned(), problem }
    }

    /// Checks that the five weights are there in the shapes that `config` gives, and nothing that would be ignored.
    pub(super) fn check_tensors(&self, config: &ModelConfig) -> Result<(), LoadError> {
        let weights = config.weights();
        for (name, shape) in &weights {
            let Some(info) = self.header.info(name) else {
                let mut names = self.header.offset_keys();
                names.truncate(NAMES_SHOWN_MAX);
                return Err(self.wrong(
                    name,
                    format!(
                        "is missing; use the public code's names for weights; the file has: {}",
                        names.join(", ")
                    ),
                ));
            };
            if info.shape != *shape {
                return Err(self.wrong(
                    name,
                    format!(
                        "has shape {:?}, but {CONFIG_FILE} requires {shape:?}; use two files of the same \
                         checkpoint",
                        info.shape
                    ),
                ));
            }
            if !matches!(info.dtype, Dtype::F32 | Dtype::F64 | Dtype::BF16 | Dtype::F16) {
                return Err(
                    self.wrong(name, format!("holds {}; convert it to F32, F64, BF16 or F16", info.dtype))
                );
            }
        }
        for name in self.header.offset_keys() {
            if !is_passed_over(&name) && weights.iter().all(|(known, _)| *known != name) {
                return Err(self.wrong(
                    &name,
                    "is not part of a BDH model; leaving it out would give wrong answers".to_owned(),
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn trained_block(&self) -> Result<Option<u32>, LoadError> {
        let Some(text) = self.header.metadata().as_ref().and_then(|metadata| metadata.get(TRAINED_BLOCK_KEY))
        else {
            return Ok(None);
        };
        text.parse()
            .map_err(|_| FieldError::new(TRAINED_BLOCK_KEY, format!("must be a whole number, not {text:?}")))
            .and_then(|block| check_range(TRAINED_BLOCK_KEY, block, 2, TrainSpec::BLOCK_MAX))
            .map(Some)
            .map_err(|problem| LoadError::Metadata { file: self.path.clone(), problem })
    }

    /// The numbers of a tensor that [`WeightFile::check_tensors`] has seen, as f32, all finite.
    pub(super) fn read(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        let info = self.header.info(name).expect("its presence was checked before");
        let (start, end) = info.data_offsets;
        let mut values = Vec::with_capacity((end - start) * 8 / info.dtype.bitsize());
        self.read_parts(name, |_, part| {
            values.extend_from_slice(part);
            Ok(())
        })?;
        Ok(values)
    }

    /// The same a part at a time, each with the index of its first number.
    pub(crate) fn read_parts(
        &mut self,
        name: &str,
        mut take: impl FnMut(usize, &[f32]) -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        let info = self.header.info(name).expect("its presence was checked before");
        let (dtype, (start, end)) = (info.dtype, info.data_offsets);
        let (mut buffer, mut values) = (vec![0; READ_BYTES.min(end - start)], Vec::new());
        let (mut left, mut index) = (end - start, 0);
        let unreadable = |source| LoadError::Unreadable { file: self.path.clone(), source };
        self.file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(unreadable)?;
        while left > 0 {
            let part = &mut buffer[..READ_BYTES.min(left)];
            self.file.read_exact(part).map_err(unreadable)?;
            values.clear();
            append_as_f32(&mut values, part, dtype);
            if let Some(place) = values.iter().position(|value| !value.is_finite()) {
                return Err(self.wrong(
                    name,
                    format!(
                        "is {} at index {}, not a finite f32; use a checkpoint from before training diverged",
                        values[place],
                        index + place
                    ),
                ));
            }
            take(index, &values)?;
            index += values.len();
            left -= part.len();
        }
        Ok(())
    }
}

/// Appends the little-endian numbers in `bytes`.
pub(crate) fn append_as_f32(values: &mut Vec<f32>, bytes: &[u8], dtype: Dtype) {
    match dtype {
        Dtype::F64 => values.extend(bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32)),
        Dtype::BF16 => values.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        Dtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
        _ => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
    }
}
