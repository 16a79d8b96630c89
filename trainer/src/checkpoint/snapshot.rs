//! A copy of everything that a checkpoint holds, in main memory, so that training goes on while it is written.

use std::collections::BTreeMap;

use hatchery_common::{checkpoint::TRAINED_BLOCK_KEY, cursor::TrainingCursor, model::ModelConfig};
use tch::{Device, Kind, TchError, Tensor};

use super::{EXP_AVG, EXP_AVG_SQ, RAW};
use crate::learner::Learner;

/// The state of a run after a step, as bytes.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) config: ModelConfig,
    pub(super) cursor: TrainingCursor,
    pub(super) model: TensorFile,
    pub(super) optimizer: TensorFile,
}

/// Tensors of f32 and text about them, to become one safetensors file.
#[derive(Debug, Default)]
pub(super) struct TensorFile {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) tensors: Vec<NamedTensor>,
}

#[derive(Debug)]
pub(super) struct NamedTensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// f32, little-endian.
    pub(super) bytes: Vec<u8>,
}

impl Snapshot {
    /// Copies weights and moments of `learner`; waits for the device.
    pub fn take(learner: &Learner, cursor: TrainingCursor) -> Result<Self, TchError> {
        let config = learner.model().config().clone();
        let mut model = TensorFile::default();
        model.metadata.insert("format".into(), "pt".into());
        model.metadata.insert(TRAINED_BLOCK_KEY.into(), cursor.train.raw().block.to_string());
        let mut optimizer = TensorFile::default();
        optimizer.metadata.insert("format".into(), "pt".into());
        for (index, (name, shape)) in config.weights().into_iter().enumerate() {
            let weight = learner.model().weights().all()[index];
            if let Some(average) = learner.average() {
                model.add(name.to_owned(), &shape, average.all()[index])?;
                optimizer.add(format!("{RAW}{name}"), &shape, weight)?;
            } else {
                model.add(name.to_owned(), &shape, weight)?;
            }
            let moments = &learner.optimizer().moments()[index];
            optimizer.add(format!("{EXP_AVG}{name}"), &shape, &moments.exp_avg)?;
            optimizer.add(format!("{EXP_AVG_SQ}{name}"), &shape, &moments.exp_avg_sq)?;
        }
        Ok(Self { config, cursor, model, optimizer })
    }

    /// Whether every weight and moment is a number: what a checkpoint must be to be worth going on from.
    pub fn is_finite(&self) -> bool {
        let finite = |file: &TensorFile| {
            file.tensors.iter().all(|tensor| {
                tensor.bytes.as_chunks::<4>().0.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite())
            })
        };
        finite(&self.model) && finite(&self.optimizer)
    }
}

impl TensorFile {
    fn add(&mut self, name: String, shape: &[usize], tensor: &Tensor) -> Result<(), TchError> {
        let tensor = tensor.f_detach()?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?;
        let mut numbers = vec![0f32; tensor.numel()];
        tensor.f_copy_data(&mut numbers, tensor.numel())?;
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.tensors.push(NamedTensor { name, shape: shape.to_vec(), bytes });
        Ok(())
    }
}
