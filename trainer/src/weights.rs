//! The five weights of BDH.

use hatchery_common::model::ModelConfig;
use tch::{Device, Kind, TchError, Tensor, no_grad_guard};

use crate::rng::{Purpose, bits, normal_pair};

/// The standard deviation of every start weight.
const START_DEVIATION: f64 = 0.02;

/// The five weights, f32, in their public shapes. V tokens, D width, H heads, M neurons per head.
#[derive(Debug)]
pub struct Weights {
    /// V x D.
    pub embed: Tensor,
    /// H x D x M, from the residual stream to neurons.
    pub encoder: Tensor,
    /// H x D x M, from what attention reads to gates.
    pub encoder_v: Tensor,
    /// H*M x D, from gated neurons back.
    pub decoder: Tensor,
    /// D x V, the readout.
    pub lm_head: Tensor,
}

impl Weights {
    /// Draws N(0, 0.02) for `seed`: the same numbers on every platform, made in f64 on the CPU.
    pub fn start(config: &ModelConfig, seed: u64) -> Result<Self, TchError> {
        let mut index = 0;
        Self::each(config, |_, shape| {
            let numbers = draw(seed, index, shape.iter().product());
            index += 1;
            Tensor::f_from_slice(&numbers)?.f_view_(shape.iter().map(|n| *n as i64).collect::<Vec<_>>())
        })
    }

    /// Makes the weights of `config` one by one, from public name and shape, in the order of the public names.
    pub fn each<E>(
        config: &ModelConfig,
        mut make: impl FnMut(&'static str, &[usize]) -> Result<Tensor, E>,
    ) -> Result<Self, E> {
        let [embed, encoder, encoder_v, decoder, lm_head] = config.weights();
        let mut make = |(name, shape): (&'static str, Vec<usize>)| make(name, &shape);
        Ok(Self {
            embed: make(embed)?,
            encoder: make(encoder)?,
            encoder_v: make(encoder_v)?,
            decoder: make(decoder)?,
            lm_head: make(lm_head)?,
        })
    }

    /// The weights in the order of [`ModelConfig::weights`].
    pub fn all(&self) -> [&Tensor; 5] {
        [&self.embed, &self.encoder, &self.encoder_v, &self.decoder, &self.lm_head]
    }

    /// The weights in the order of [`ModelConfig::weights`], to be changed in place.
    pub fn all_mut(&mut self) -> [&mut Tensor; 5] {
        [&mut self.embed, &mut self.encoder, &mut self.encoder_v, &mut self.decoder, &mut self.lm_head]
    }

    /// The weights in another kind of number; what is of that kind already is shared and not copied.
    pub fn to_kind(&self, kind: Kind) -> Result<Self, TchError> {
        self.map(|weight| weight.f_detach()?.f_to_kind(kind))
    }

    /// The weights on `device`.
    pub fn on(&self, device: Device) -> Result<Self, TchError> {
        self.map(|weight| weight.f_detach()?.f_to_device(device))
    }

    /// A copy, which nothing is learned by.
    pub fn copy(&self) -> Result<Self, TchError> {
        self.map(Tensor::f_detach_copy)
    }

    /// Goes `share` of the way to `others`.
    pub fn approach(&mut self, others: &Self, share: f64) -> Result<(), TchError> {
        let _guard = no_grad_guard();
        for (weight, other) in self.all_mut().into_iter().zip(others.all()) {
            let _ = weight.f_lerp_(other, share)?;
        }
        Ok(())
    }

    /// A weight made from each.
    fn map(&self, make: impl Fn(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        Ok(Self {
            embed: make(&self.embed)?,
            encoder: make(&self.encoder)?,
            encoder_v: make(&self.encoder_v)?,
            decoder: make(&self.decoder)?,
            lm_head: make(&self.lm_head)?,
        })
    }

    /// Moves the weights to `device`, so that gradients can be taken of them.
    pub fn trainable_on(self, device: Device) -> Result<Self, TchError> {
        self.map(|weight| weight.f_detach()?.f_to_device(device)?.f_set_requires_grad(true))
    }
}

fn draw(seed: u64, weight: u64, count: usize) -> Vec<f32> {
    let pair = |i: u64| {
        let word = |half| bits(seed, Purpose::Weights, weight, 2 * i + half);
        normal_pair(word(0), word(1)).map(|x| (x * START_DEVIATION) as f32)
    };
    let mut numbers: Vec<f32> = (0..count.div_ceil(2) as u64).flat_map(pair).collect();
    numbers.truncate(count);
    numbers
}

#[cfg(test)]
mod tests {
    use hatchery_common::model::RawModelConfig;

    use super::*;

    fn start(seed: u64) -> Weights {
        let raw = RawModelConfig { n_embd: 32, mlp_internal_dim_multiplier: 8, ..Default::default() };
        Weights::start(&ModelConfig::new(raw).unwrap(), seed).unwrap()
    }

    #[test]
    fn start_weights_follow_from_the_seed_on_every_platform() {
        let first = |weights: &Weights| -> Vec<f32> {
            weights.all().iter().map(|weight| weight.flatten(0, -1).double_value(&[0]) as f32).collect()
        };
        let known = first(&start(1));
        assert_eq!(known, first(&start(1)));
        assert_ne!(known, first(&start(2)));
        let kept = [0.011_159_101, 0.024_960_043, -0.039_101_698, 0.017_492_803, -0.017_795_712];
        assert_eq!(known, kept, "kept from the first run");
    }

    #[test]
    fn every_start_weight_is_drawn_alike() {
        for weight in start(3).all() {
            let (mean, deviation) = (weight.mean(Kind::Double), weight.std(false));
            let (mean, deviation) = (f64::try_from(mean).unwrap(), f64::try_from(deviation).unwrap());
            assert!(
                mean.abs() < 1e-3 && (deviation / START_DEVIATION - 1.0).abs() < 0.03,
                "{mean} {deviation}"
            );
        }
    }
}
