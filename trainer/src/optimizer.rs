//! AdamW over tensors, with its state in the open, as `torch.optim.AdamW` does it.

use hatchery_common::recipe::RawTrainSpec;
use tch::{TchError, Tensor, no_grad_guard};

use crate::weights::Weights;

/// AdamW: decoupled decay on all weights, bias correction, no AMSGrad.
#[derive(Debug)]
pub struct AdamW {
    settings: Settings,
    /// In the order of the weights.
    moments: Vec<Moments>,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    lr: f64,
    decay: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
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
    pub fn new(spec: &RawTrainSpec, weights: &Weights) -> Result<Self, TchError> {
        let zeros = |weight: &Tensor| weight.f_detach()?.f_zeros_like();
        let moments = weights
            .all()
            .into_iter()
            .map(|weight| Ok::<_, TchError>(Moments { exp_avg: zeros(weight)?, exp_avg_sq: zeros(weight)? }));
        Ok(Self::with_moments(spec, moments.collect::<Result<_, _>>()?))
    }

    /// Goes on with `moments`, in the order of the weights and on their device.
    pub fn with_moments(spec: &RawTrainSpec, moments: Vec<Moments>) -> Self {
        let settings = Settings {
            lr: spec.lr,
            decay: spec.weight_decay,
            beta1: spec.beta1,
            beta2: spec.beta2,
            epsilon: spec.epsilon,
        };
        Self { settings, moments }
    }

    /// The moments, in the order of the weights.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Changes `weights` by their `gradients`; `step` counts from 1.
    pub fn update(&mut self, weights: &mut Weights, gradients: &[Tensor], step: u64) -> Result<(), TchError> {
        let _guard = no_grad_guard();
        let Settings { lr, decay, beta1, beta2, epsilon } = self.settings;
        let correction1 = 1.0 - beta1.powf(step as f64);
        let correction2 = 1.0 - beta2.powf(step as f64);
        for ((weight, moments), gradient) in
            weights.all_mut().into_iter().zip(&mut self.moments).zip(gradients)
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
