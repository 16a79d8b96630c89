//! AdamW over tensors, with its state in the open, as `torch.optim.AdamW` does it.

use hatchery_common::recipe::TrainSpec;
use hatchery_trainer_shim as shim;
use tch::{Kind, TchError, Tensor, no_grad_guard};

use crate::weights::Weights;

/// AdamW: decoupled decay on all weights, bias correction, no AMSGrad.
#[derive(Debug)]
pub struct AdamW {
    spec: TrainSpec,
    /// In the order of the weights.
    moments: Vec<Moments>,
    is_plain: bool,
}

/// The running means of one weight's gradient and of its square; the shape of the weight, f32.
#[derive(Debug)]
pub struct Moments {
    pub exp_avg: Tensor,
    pub exp_avg_sq: Tensor,
}

impl AdamW {
    /// Starts with moments of zero.
    pub fn new(spec: &TrainSpec, weights: &Weights) -> Result<Self, TchError> {
        let zeros = |weight: &Tensor| weight.f_detach()?.f_zeros_like();
        let moments = weights
            .all()
            .into_iter()
            .map(|weight| Ok::<_, TchError>(Moments { exp_avg: zeros(weight)?, exp_avg_sq: zeros(weight)? }));
        Ok(Self::with_moments(spec, moments.collect::<Result<_, _>>()?))
    }

    /// Goes on with `moments`, in the order of the weights and on their device.
    pub fn with_moments(spec: &TrainSpec, moments: Vec<Moments>) -> Self {
        Self { spec: spec.clone(), moments, is_plain: false }
    }

    /// The moments, in the order of the weights.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Takes the update written out below from now on, also where libtorch has one in one pass: to be compared with.
    pub fn use_plain_update(&mut self) {
        self.is_plain = true;
    }

    /// Changes `weights` by their `gradients`, which are cut first if they are too long; `step` counts from 0.
    ///
    /// By libtorch's fused update where it has one for the weights' device, which takes one pass over memory instead of a
    /// dozen; the two differ by rounding.
    pub fn update(
        &mut self,
        weights: &mut Weights,
        gradients: &mut [Tensor],
        step: u64,
    ) -> Result<(), TchError> {
        let _guard = no_grad_guard();
        let raw = self.spec.raw();
        clip(gradients, raw.clip_norm)?;
        let figures = shim::AdamW {
            update: step + 1,
            lr: self.spec.learning_rate(step),
            beta1: raw.beta1,
            beta2: raw.beta2,
            weight_decay: raw.weight_decay,
            epsilon: raw.epsilon,
        };
        if self.is_plain || !shim::has_fused_adamw(&weights.embed) {
            return plain_update(weights, gradients, &mut self.moments, figures);
        }
        let (mut exp_avgs, mut exp_avg_sqs): (Vec<_>, Vec<_>) =
            self.moments.iter_mut().map(|moments| (&mut moments.exp_avg, &mut moments.exp_avg_sq)).unzip();
        let gradients: Vec<_> = gradients.iter().collect();
        shim::fused_adamw(&mut weights.all_mut(), &gradients, &mut exp_avgs, &mut exp_avg_sqs, figures)
    }
}

/// The update operation by operation, as the paper has it (Loshchilov and Hutter, Decoupled Weight Decay Regularization).
fn plain_update(
    weights: &mut Weights,
    gradients: &[Tensor],
    moments: &mut [Moments],
    figures: shim::AdamW,
) -> Result<(), TchError> {
    let shim::AdamW { update, lr, beta1, beta2, weight_decay, epsilon } = figures;
    let correction1 = 1.0 - beta1.powf(update as f64);
    let correction2 = 1.0 - beta2.powf(update as f64);
    for ((weight, moments), gradient) in weights.all_mut().into_iter().zip(moments).zip(gradients) {
        let mut square = gradient.f_square()?;
        let _ = square.f_mul_scalar_(1.0 - beta2)?;
        let _ = moments.exp_avg.f_lerp_(gradient, 1.0 - beta1)?;
        let _ = moments.exp_avg_sq.f_mul_scalar_(beta2)?.f_add_(&square)?;

        let mut denominator = moments.exp_avg_sq.f_sqrt()?;
        let _ = denominator.f_div_scalar_(correction2.sqrt())?.f_add_scalar_(epsilon)?;
        let mut change = moments.exp_avg.f_div(&denominator)?;
        let _ = change.f_mul_scalar_(lr / correction1)?;
        let _ = weight.f_mul_scalar_(1.0 - lr * weight_decay)?.f_sub_(&change)?;
    }
    Ok(())
}

/// Cuts `gradients` to the length `norm_max` over all of them together, if they are longer; 0: never. All of it on the
/// device, so that nothing waits for it.
fn clip(gradients: &mut [Tensor], norm_max: f64) -> Result<(), TchError> {
    /// Against division by zero, as in `torch.nn.utils.clip_grad_norm_`.
    const EPSILON: f64 = 1e-6;
    if norm_max == 0.0 {
        return Ok(());
    }
    let squares = gradients.iter().map(|gradient| gradient.f_square()?.f_sum(Kind::Float));
    let norm = Tensor::f_stack(&squares.collect::<Result<Vec<_>, _>>()?, 0)?.f_sum(Kind::Float)?.f_sqrt()?;
    let factor = norm.f_add_scalar(EPSILON)?.f_reciprocal()?.f_mul_scalar(norm_max)?.f_clamp_max(1.0)?;
    for gradient in gradients {
        let _ = gradient.f_mul_(&factor)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use hatchery_common::{
        model::{ModelConfig, RawModelConfig},
        recipe::RawTrainSpec,
    };
    use proptest::prelude::*;
    use tch::Device;

    use super::*;

    /// Weights and moments after `steps` updates with gradients of N(0, `deviation`).
    fn updated(raw: &RawTrainSpec, kind: Kind, deviation: f64, steps: u64, is_plain: bool) -> Vec<Tensor> {
        let raw_model = RawModelConfig { n_embd: 20, mlp_internal_dim_multiplier: 6, ..Default::default() };
        let config = ModelConfig::new(raw_model).unwrap();
        let start = Weights::start(&config, 3).unwrap();
        let mut weights = start.to_kind(kind).unwrap();
        let mut adamw = AdamW::new(&TrainSpec::new(raw.clone()).unwrap(), &weights).unwrap();
        if is_plain {
            adamw.use_plain_update();
        }
        for step in 0..steps {
            // Not from libtorch's generator: it is one for the whole process, and other tests run beside this one.
            let normal = Weights::start(&config, 100 + step).unwrap();
            let scale = deviation / f64::try_from(normal.embed.std(true)).unwrap();
            let mut gradients: Vec<_> =
                normal.all().iter().map(|normal| normal.to_kind(kind) * scale).collect();
            adamw.update(&mut weights, &mut gradients, step).unwrap();
        }
        let moments = adamw.moments.into_iter().flat_map(|moments| [moments.exp_avg, moments.exp_avg_sq]);
        weights.all().into_iter().map(Tensor::shallow_clone).chain(moments).collect()
    }

    #[test]
    fn this_libtorch_has_a_fused_update_on_a_cpu() {
        assert!(shim::has_fused_adamw(&Tensor::zeros([1], (Kind::Float, Device::Cpu))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn fused_and_plain_updates_agree(
            lr in 1e-5..1e-1,
            weight_decay in 0.0..1.0,
            beta1 in 0.0..0.99,
            beta2 in 0.5..0.9999,
            epsilon in prop_oneof![Just(1e-8), Just(1e-3)],
            clip_norm in prop_oneof![Just(0.0), Just(1.0)],
            deviation in prop_oneof![Just(1e-6), Just(1e-2), Just(10.0)],
        ) {
            tch::set_num_threads(1);
            let raw = RawTrainSpec { lr, weight_decay, beta1, beta2, epsilon, clip_norm, ..Default::default() };
            for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::Double, 1e-13)] {
                let plain = updated(&raw, kind, deviation, 20, true);
                let fused = updated(&raw, kind, deviation, 20, false);
                for (plain, fused) in plain.iter().zip(&fused) {
                    let error = f64::try_from((plain - fused).norm() / plain.norm()).unwrap();
                    prop_assert!(error <= tolerance, "{kind:?}: {error:e}");
                }
            }
        }
    }
}
