//! AdamW over tensors, with its state in the open, as `torch.optim.AdamW` does it.

use hatchery_common::recipe::{RawTrainSpec, TrainSpec};
use tch::{Kind, TchError, Tensor, no_grad_guard};

use crate::weights::Weights;

/// AdamW: decoupled decay on all weights, bias correction, no AMSGrad.
#[derive(Debug)]
pub struct AdamW {
    spec: TrainSpec,
    /// In the order of the weights.
    moments: Vec<Moments>,
}

/// The running means of one weight's gradient and of its square; the shape of the weight, f32.
#[derive(Debug)]
pub struct Moments {
    /// Of the gradient.
    pub exp_avg: Tensor,
    /// Of its square.
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
        Self { spec: spec.clone(), moments }
    }

    /// The moments, in the order of the weights.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Changes `weights` by their `gradients`, which are cut first if they are too long; `step` counts from 0.
    pub fn update(
        &mut self,
        weights: &mut Weights,
        gradients: &mut [Tensor],
        step: u64,
    ) -> Result<(), TchError> {
        let _guard = no_grad_guard();
        let RawTrainSpec { weight_decay: decay, beta1, beta2, epsilon, clip_norm, .. } = *self.spec.raw();
        clip(gradients, clip_norm)?;
        let lr = self.spec.learning_rate(step);
        let updates = (step + 1) as f64;
        let correction1 = 1.0 - beta1.powf(updates);
        let correction2 = 1.0 - beta2.powf(updates);
        for ((weight, moments), gradient) in
            weights.all_mut().into_iter().zip(&mut self.moments).zip(&*gradients)
        {
            let mut square = gradient.f_square()?;
            let _ = square.f_mul_scalar_(1.0 - beta2)?;
            let _ = moments.exp_avg.f_lerp_(gradient, 1.0 - beta1)?;
            let _ = moments.exp_avg_sq.f_mul_scalar_(beta2)?.f_add_(&square)?;

            let mut denominator = moments.exp_avg_sq.f_sqrt()?;
            let _ = denominator.f_div_scalar_(correction2.sqrt())?.f_add_scalar_(epsilon)?;
            let mut change = moments.exp_avg.f_div(&denominator)?;
            let _ = change.f_mul_scalar_(lr / correction1)?;
            let _ = weight.f_mul_scalar_(1.0 - lr * decay)?.f_sub_(&change)?;
        }
        Ok(())
    }
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
