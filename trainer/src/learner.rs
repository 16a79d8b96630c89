//! One step of learning: loss, gradients, AdamW.

use hatchery_common::{
    model::ModelConfig,
    recipe::{Precision, TrainSpec},
};
use tch::{Device, TchError, Tensor};

use crate::{
    counter::{Purpose, bits},
    data::Batch,
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
        Ok(Self { model, optimizer, seed: spec.seed })
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
        // Dropout by (seed, step): a resumed run drops what an uninterrupted one would have.
        tch::manual_seed(bits(self.seed, Purpose::Dropout, step, 0) as i64);
        let loss = self.model.loss(&batch.tokens, &batch.targets, Pass::Training)?;
        let gradients = Tensor::f_run_backward(&[&loss], &self.model.weights().all(), false, false)?;
        self.optimizer.update(self.model.weights_mut(), &gradients, step + 1)?;
        loss.f_detach()
    }
}
