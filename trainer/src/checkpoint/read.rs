//! Reading a checkpoint folder that may come from anywhere: sizes, names and shapes are checked before use.

use std::path::{Path, PathBuf};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, PUBLIC_BLOCK, TRAINED_BLOCK_KEY, TRAINING_FILE},
    cursor::TrainingCursor,
    digest::Digest,
    durable::read_limited,
    model::ModelConfig,
    recipe::TrainSpec,
};
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use super::{CheckpointError, EXP_AVG, EXP_AVG_SQ, RAW};
use crate::{optimizer::Moments, weights::Weights};

/// Largest `config.json` or `training.json`.
const JSON_BYTES_MAX: u64 = 1 << 20;
/// Largest safetensors header that is read.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// The form of `training.json` that this build writes and reads.
const CURSOR_VERSION: u32 = 1;

/// What the two public files of a checkpoint hold.
#[derive(Debug)]
pub struct ModelFolder {
    pub config: ModelConfig,
    /// The weights, f32 on the CPU.
    pub weights: Weights,
    /// The block that the model was trained on, if any file names it.
    pub trained_block: Option<u32>,
    /// The digest of `model.safetensors`.
    pub digest: Digest,
}

impl ModelFolder {
    /// The trained block, or the one that the public training code uses.
    pub fn block(&self) -> u32 {
        self.trained_block.unwrap_or(PUBLIC_BLOCK)
    }
}

/// Reads shape and weights. `config.json` and `model.safetensors` suffice; weights of bf16, f16 and f64 become f32.
pub fn read_model(folder: &Path) -> Result<ModelFolder, CheckpointError> {
    let config: ModelConfig = read_json(&folder.join(CONFIG_FILE))?;
    let file = TensorBytes::read(folder.join(MODEL_FILE), config.parameters())?;
    let tensors = file.parse()?;
    let weights = Weights::each(&config, |name, shape| file.tensor(&tensors, name, shape))?;
    let trained_block = match file.metadata(TRAINED_BLOCK_KEY)? {
        Some(text) => Some(file.check_block(&text)?),
        // A cursor of another program's says nothing to us, and is not needed to read a model.
        None => read_cursor(folder).ok().map(|cursor| cursor.train.raw().block),
    };
    Ok(ModelFolder { config, weights, trained_block, digest: Digest::of(&file.bytes) })
}

/// What all four files of a checkpoint hold.
#[derive(Debug)]
pub struct TrainingFolder {
    pub config: ModelConfig,
    /// The weights that training goes on with, f32 on the CPU.
    pub weights: Weights,
    /// Their running mean, f32 on the CPU, where the run kept one.
    pub average: Option<Weights>,
    /// AdamW's moments, in the order of the weights, on the wanted device.
    pub moments: Vec<Moments>,
    /// Where the run stood.
    pub cursor: TrainingCursor,
}

/// Reads all that going on needs; the moments are placed on `device`.
pub fn read_training(folder: &Path, device: Device) -> Result<TrainingFolder, CheckpointError> {
    const TENSORS_PER_WEIGHT_MAX: u64 = 3;
    let ModelFolder { config, weights, .. } = read_model(folder)?;
    let cursor = read_cursor(folder)?;
    let file = TensorBytes::read(folder.join(OPTIMIZER_FILE), TENSORS_PER_WEIGHT_MAX * config.parameters())?;
    let tensors = file.parse()?;
    let read =
        |prefix: &str, name: &str, shape: &[usize]| file.tensor(&tensors, &format!("{prefix}{name}"), shape);
    let moments = config.weights().into_iter().map(|(name, shape)| {
        Ok::<_, CheckpointError>(Moments {
            exp_avg: read(EXP_AVG, name, &shape)?.f_to_device(device)?,
            exp_avg_sq: read(EXP_AVG_SQ, name, &shape)?.f_to_device(device)?,
        })
    });
    let moments = moments.collect::<Result<_, _>>()?;
    let (weights, average) = if cursor.train.raw().ema_decay > 0.0 {
        (Weights::each(&config, |name, shape| read(RAW, name, shape))?, Some(weights))
    } else {
        (weights, None)
    };
    Ok(TrainingFolder { config, weights, average, moments, cursor })
}

/// Reads where the run stood.
pub fn read_cursor(folder: &Path) -> Result<TrainingCursor, CheckpointError> {
    let path = folder.join(TRAINING_FILE);
    let cursor: TrainingCursor = read_json(&path)?;
    if cursor.version == CURSOR_VERSION {
        Ok(cursor)
    } else {
        let problem = format!("its form is {}, but this version reads form {CURSOR_VERSION}", cursor.version);
        Err(CheckpointError::Content { path, problem })
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let bytes = read_limited(path, JSON_BYTES_MAX).map_err(CheckpointError::Read)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| CheckpointError::Content { path: path.to_owned(), problem: error.to_string() })
}

/// A safetensors file in memory.
struct TensorBytes {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl TensorBytes {
    /// Reads a file that is to hold `numbers` numbers; a file too large for that is refused.
    fn read(path: PathBuf, numbers: u64) -> Result<Self, CheckpointError> {
        const NUMBER_BYTES_MAX: u64 = 8;
        // Public state dicts may also hold the rotary frequencies and an unused gate, which are small beside the rest.
        const UNUSED_SHARE: u64 = 2;
        let bytes_max = UNUSED_SHARE * NUMBER_BYTES_MAX * numbers + HEADER_BYTES_MAX;
        let bytes = read_limited(&path, bytes_max).map_err(CheckpointError::Read)?;
        Ok(Self { path, bytes })
    }

    fn wrong(&self, problem: impl ToString) -> CheckpointError {
        CheckpointError::Content { path: self.path.clone(), problem: problem.to_string() }
    }

    fn parse(&self) -> Result<SafeTensors<'_>, CheckpointError> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| {
            self.wrong(format!("it is not a complete safetensors file ({error}, {} bytes)", self.bytes.len()))
        })
    }

    fn metadata(&self, key: &str) -> Result<Option<String>, CheckpointError> {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).map_err(|error| self.wrong(error))?;
        Ok(metadata.metadata().as_ref().and_then(|metadata| metadata.get(key).cloned()))
    }

    fn check_block(&self, text: &str) -> Result<u32, CheckpointError> {
        text.parse().ok().filter(|block| (1..=TrainSpec::BLOCK_MAX).contains(block)).ok_or_else(|| {
            self.wrong(format!("its {TRAINED_BLOCK_KEY} is {text:?}, not 1 to {}", TrainSpec::BLOCK_MAX))
        })
    }

    /// The tensor called `name`, f32 on the CPU, which must have `shape`.
    fn tensor(
        &self,
        tensors: &SafeTensors<'_>,
        name: &str,
        shape: &[usize],
    ) -> Result<Tensor, CheckpointError> {
        let view = tensors.tensor(name).map_err(|_| self.wrong(format!("it has no tensor `{name}`")))?;
        if view.shape() != shape {
            return Err(self.wrong(format!(
                "`{name}` has the shape {:?}, but {CONFIG_FILE} requires {shape:?}",
                view.shape()
            )));
        }
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => return Err(self.wrong(format!("`{name}` is {other}, not f32, f64, f16 or bf16"))),
        };
        let sizes: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
        // The parser has checked that the bytes are as many as shape and kind ask for.
        Ok(Tensor::f_from_data_size(view.data(), &sizes, kind)?.f_to_kind(Kind::Float)?)
    }
}
