//! One step of learning: loss, gradients, AdamW.

use hatchery_common::{
    model::ModelConfig,
    recipe::{Precision, TrainSpec},
};
use tch::{Device, TchError, Tensor};

use crate::{
    data::Batch,
    dropout::Dropout,
    fast::Fast,
    model::{Model, Pass},
    optimizer::{AdamW, Moments},
    weights::Weights,
};

/// A model that learns. What a step does follows from its state, the seed and the step's number alone.
#[derive(Debug)]
pub struct Learner {
    model: Model,
    optimizer: AdamW,
    seed: u64,
    /// On a CPU in f32: the way there that [`Model`] is the oracle of.
    fast: Option<Fast<f32>>,
}

impl Learner {
    /// Places everything on `device`. No `moments`: starts with none.
    pub fn new(
        config: ModelConfig,
        spec: &TrainSpec,
        weights: Weights,
        moments: Option<Vec<Moments>>,
        device: Device,
        precision: Precision,
    ) -> Result<Self, TchError> {
        let spec = spec.raw();
        let model = Model::new(config, weights, device, precision, spec.block as usize)?;
        let optimizer = match moments {
            Some(moments) => AdamW::with_moments(spec, moments),
            None => AdamW::new(spec, model.weights())?,
        };
        let fast = if device == Device::Cpu && precision != Precision::Bf16 {
            let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).min(spec.batch as usize);
            Some(Fast::new(model.config(), spec.block as usize, threads)?)
        } else {
            None
        };
        Ok(Self { model, optimizer, seed: spec.seed, fast })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The optimizer as it is now.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Learns from `batch`; `step` counts the steps done before. Gives the loss before the step, a scalar that stays on
    /// the device, so that nothing waits for it.
    pub fn step(&mut self, step: u64, batch: &Batch) -> Result<Tensor, TchError> {
        let (loss, gradients) = self.gradients(step, batch)?;
        self.optimizer.update(self.model.weights_mut(), &gradients, step + 1)?;
        Ok(loss)
    }

    fn gradients(&mut self, step: u64, batch: &Batch) -> Result<(Tensor, Vec<Tensor>), TchError> {
        let dropout = Dropout::new(self.model.config().dropout(), self.seed, step);
        match &mut self.fast {
            Some(fast) if batch.tokens.size().last() == Some(&(fast.tokens() as i64)) => {
                let (loss, gradients) = fast.loss_and_gradients(self.model.weights(), batch, dropout)?;
                Ok((Tensor::from(loss as f32), gradients))
            }
            _ => {
                let loss = self.model.loss(&batch.tokens, &batch.targets, Pass::Training(dropout))?;
                let gradients = Tensor::f_run_backward(&[&loss], &self.model.weights().all(), false, false)?;
                Ok((loss.f_detach()?, gradients))
            }
        }
    }
}
