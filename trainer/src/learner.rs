//! One step of learning: loss, gradients, AdamW, the running mean of the weights.

use std::mem;

use hatchery_common::{
    model::ModelConfig,
    recipe::{Precision, TrainSpec},
};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    data::Batch,
    dropout::Dropout,
    evaluate::Losses,
    fast::Fast,
    fused::{Fused, Measured},
    model::{Model, Pass},
    optimizer::{AdamW, Moments},
    weights::Weights,
};

/// A model that learns. What a step does follows from its state, the seed and the step's number alone.
#[derive(Debug)]
pub struct Learner {
    model: Model,
    optimizer: AdamW,
    /// The running mean of the weights, if the recipe wants one.
    average: Option<Weights>,
    spec: TrainSpec,
    /// In how many parts a batch goes through every path but `fast`.
    parts: i64,
    /// On a CPU in f32, for sequences of the recipe's length.
    fast: Option<Fast<f32>>,
    /// Everywhere else. Of both [`Model`] is the oracle.
    fused: Option<Fused>,
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
        let raw = spec.raw();
        let model = Model::new(config, weights, device, precision, raw.block as usize)?;
        let optimizer = match moments {
            Some(moments) => AdamW::with_moments(spec, moments),
            None => AdamW::new(spec, model.weights())?,
        };
        let average = if raw.ema_decay > 0.0 { Some(model.weights().copy()?) } else { None };
        let is_f32 = model.weights().embed.kind() == Kind::Float && precision != Precision::Bf16;
        let fast = if device == Device::Cpu && is_f32 {
            let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).min(raw.batch as usize);
            Some(Fast::new(model.config(), raw.block as usize, threads)?)
        } else {
            None
        };
        let fused = match fast {
            Some(_) => None,
            None => Some(Fused::new(model.config(), model.kind(), device, precision, raw.block as usize)?),
        };
        Ok(Self { model, optimizer, average, spec: spec.clone(), parts: raw.accumulate.into(), fast, fused })
    }

    /// Goes on with a running mean of the weights that is there already, on the CPU; nothing, where the recipe wants none.
    pub fn go_on_with_average(&mut self, average: Weights) -> Result<(), TchError> {
        if self.average.is_some() {
            self.average = Some(average.on(self.model.device())?);
        }
        Ok(())
    }

    /// Takes libtorch's own derivatives from now on: to be compared with.
    pub fn use_plain_path(&mut self) {
        (self.fast, self.fused) = (None, None);
    }

    /// Takes gradients by hand with libtorch's operations between the products from now on, on any device: to be compared
    /// with.
    pub fn use_libtorchs_operations(&mut self) -> Result<(), TchError> {
        let fused = if let Some(fused) = self.fused.take() {
            fused
        } else {
            // Who has none computes in the kind of the weights.
            let (model, block) = (&self.model, self.spec.raw().block as usize);
            Fused::new(model.config(), model.kind(), model.device(), Precision::F32, block)?
        };
        (self.fast, self.fused) = (None, Some(fused.without_kernels()?));
        Ok(())
    }

    /// Whether gradients are computed by hand over the whole batch at once.
    pub fn has_fused(&self) -> bool {
        self.fused.is_some()
    }

    /// Whether kernels of its own compute the pointwise operations.
    pub fn has_kernels(&self) -> bool {
        self.fused.as_ref().is_some_and(Fused::has_kernels)
    }

    /// Why a step takes longer here than it could; nothing where it does not.
    pub fn slower_because(&self) -> Option<&str> {
        self.fused.as_ref().and_then(Fused::no_kernels)
    }

    /// Times the pointwise operations of a batch, each operation the mean of `repeats` calls; `wait` waits for the device. None:
    /// this learner does not compute so.
    pub fn measure(&self, repeats: usize, wait: &dyn Fn()) -> Result<Option<Measured>, TchError> {
        let sequences = i64::from(self.spec.raw().batch) / self.parts;
        self.fused.as_ref().map(|fused| fused.measure(sequences, repeats, wait)).transpose()
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The running mean of the weights, if the recipe wants one: what is validated and served.
    pub fn average(&self) -> Option<&Weights> {
        self.average.as_ref()
    }

    /// The optimizer as it is now.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Learns from `batch`; `step` counts the steps done before. Gives the loss before the step, a scalar that stays on
    /// the device, so that nothing waits for it.
    pub fn step(&mut self, step: u64, batch: &Batch) -> Result<Tensor, TchError> {
        let (loss, mut gradients) = self.gradients(step, batch)?;
        self.optimizer.update(self.model.weights_mut(), &mut gradients, step)?;
        if let Some(average) = &mut self.average {
            average.approach(self.model.weights(), 1.0 - self.spec.ema_decay(step))?;
        }
        Ok(loss)
    }

    fn gradients(&mut self, step: u64, batch: &Batch) -> Result<(Tensor, Vec<Tensor>), TchError> {
        let dropout = Dropout::new(self.model.config().dropout(), self.spec.raw().seed, step);
        match fast_for(&mut self.fast, batch) {
            Some(fast) => {
                let (loss, gradients) = fast.loss_and_gradients(self.model.weights(), batch, dropout)?;
                Ok((Tensor::from(loss as f32), gradients))
            }
            None => self.gradients_in_parts(batch, dropout),
        }
    }

    fn gradients_in_parts(
        &self,
        batch: &Batch,
        dropout: Option<Dropout>,
    ) -> Result<(Tensor, Vec<Tensor>), TchError> {
        let rows = batch.tokens.size()[0] / self.parts;
        let mut sum: Option<(Tensor, Vec<Tensor>)> = None;
        for part in 0..self.parts {
            let first = part * rows;
            let (tokens, targets) =
                (batch.tokens.f_narrow(0, first, rows)?, batch.targets.f_narrow(0, first, rows)?);
            let dropout = dropout.map(|dropout| dropout.from_sequence(first as u64));
            let (loss, gradients) = self.gradients_of_part(&Batch { tokens, targets }, dropout)?;
            sum = Some(match sum {
                None => (loss, gradients),
                Some((total, mut sums)) => {
                    for (sum, gradient) in sums.iter_mut().zip(&gradients) {
                        let _ = sum.f_add_(gradient)?;
                    }
                    (total.f_add(&loss)?, sums)
                }
            });
        }
        let Some((mut loss, mut gradients)) = sum else {
            return Err(TchError::Shape("a batch of no parts".into()));
        };
        if self.parts > 1 {
            for sum in gradients.iter_mut().chain([&mut loss]) {
                let _ = sum.f_div_scalar_(self.parts)?;
            }
        }
        Ok((loss, gradients))
    }

    fn gradients_of_part(
        &self,
        part: &Batch,
        dropout: Option<Dropout>,
    ) -> Result<(Tensor, Vec<Tensor>), TchError> {
        if let Some(fused) = &self.fused {
            return fused.loss_and_gradients(self.model.weights(), part, dropout);
        }
        let loss = self.model.loss(&part.tokens, &part.targets, Pass::Training(dropout))?;
        let gradients = Tensor::f_run_backward(&[&loss], &self.model.weights().all(), false, false)?;
        Ok((loss.f_detach()?, gradients))
    }
}

impl Losses for Learner {
    fn device(&self) -> Device {
        self.model.device()
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f64>, TchError> {
        if let Some(fast) = fast_for(&mut self.fast, batch) {
            return fast.losses(self.average.as_ref().unwrap_or(self.model.weights()), batch);
        }
        let Some(average) = &mut self.average else {
            return Losses::losses(&mut &self.model, batch);
        };
        mem::swap(self.model.weights_mut(), average);
        let losses = Losses::losses(&mut &self.model, batch);
        mem::swap(self.model.weights_mut(), average);
        losses
    }
}

/// The fast path, if there is one for sequences of this length.
fn fast_for<'a>(fast: &'a mut Option<Fast<f32>>, batch: &Batch) -> Option<&'a mut Fast<f32>> {
    let tokens = *batch.tokens.size().last()?;
    fast.as_mut().filter(|fast| fast.tokens() as i64 == tokens)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;
    use crate::rng::{Purpose, below, bits};
    use hatchery_common::recipe::{RawTrainSpec, Recipe};

    fn learner(parts: u32) -> Learner {
        let recipe = Recipe::parse(Some("tiny"), "", &[]).unwrap();
        let raw = RawTrainSpec { accumulate: parts, batch: 8, block: 24, ..Default::default() };
        let weights = Weights::start(&recipe.model, 3).unwrap();
        let spec = TrainSpec::new(raw).unwrap();
        Learner::new(recipe.model, &spec, weights, None, Device::Cpu, Precision::F32).unwrap()
    }

    #[test]
    fn a_batch_in_parts_gives_the_gradients_of_the_whole_with_the_same_dropout() {
        // Not from libtorch's generator: it is one for the whole process, and other tests run beside this one.
        let byte = |which, place| below(256, bits(1, Purpose::Windows, which, place)) as i64;
        let bytes = |which| {
            let bytes: Vec<i64> = (0..8 * 24).map(|place| byte(which, place)).collect();
            Tensor::from_slice(&bytes).view([8, 24])
        };
        let batch = Batch { tokens: bytes(0), targets: bytes(1) };
        let dropout = Dropout::new(0.1, 1, 5);
        let (loss, whole) = learner(1).gradients_in_parts(&batch, dropout).unwrap();
        let by_hand = learner(1).gradients(5, &batch).unwrap().1;
        for (parts, is_fused) in [(2, false), (4, false), (8, false), (1, true), (4, true)] {
            let mut learner = learner(parts);
            if is_fused {
                let config = learner.model.config();
                let fused = Fused::new(config, Kind::Float, Device::Cpu, Precision::F32, 24).unwrap();
                learner.fused = Some(fused);
            }
            let (found, sums) = learner.gradients_in_parts(&batch, dropout).unwrap();
            assert!((f64::try_from(found - &loss).unwrap()).abs() < 1e-5);
            for ((found, expected), by_hand) in sums.iter().zip(&whole).zip(&by_hand) {
                let error = f64::try_from((found - expected).norm() / expected.norm()).unwrap();
                // As below: by hand, a neuron at the edge of its relu may fall on the other side.
                let most = if is_fused { 1e-3 } else { 1e-5 };
                assert!(error < most, "{parts} parts, fused {is_fused}: {error:e}");
                let error = f64::try_from((by_hand - expected).norm() / expected.norm()).unwrap();
                // In f32 a neuron at the edge of its relu may fall on the other side; in f64 it is 1e-12 (tests/fast.rs).
                assert!(error < 1e-3, "by hand: {error:e}");
            }
        }
    }
}
