//! AdamW in one pass over each tensor.

use std::ffi::{c_char, c_int};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::message::told;

/// The figures of one update.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// The number of this update, from 1.
    pub update: u64,
    pub lr: f64,
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of its square's running mean.
    pub beta2: f64,
    /// Decoupled decay of the weights.
    pub weight_decay: f64,
    /// The term against division by zero.
    pub epsilon: f64,
}

unsafe extern "C" {
    fn hatchery_has_fused_adamw(tensor: *const C_tensor) -> c_int;
    fn hatchery_fused_adamw(
        weights: *const *const C_tensor,
        gradients: *const *const C_tensor,
        exp_avgs: *const *const C_tensor,
        exp_avg_sqs: *const *const C_tensor,
        count: usize,
        step: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
}

/// Whether this libtorch can do [`fused_adamw`] on tensors where `tensor` is.
pub fn has_fused_adamw(tensor: &Tensor) -> bool {
    // SAFETY: the pointer is that of a live tensor, which is only looked at.
    unsafe { hatchery_has_fused_adamw(tensor.as_ptr()) != 0 }
}

/// Changes `weights`, and the running means of their `gradients` and of the squares, by one update of AdamW. All four
/// lists are of the same length, kinds, shapes and device; libtorch's error says what is not.
pub fn fused_adamw(
    weights: &mut [&mut Tensor],
    gradients: &[&Tensor],
    exp_avgs: &mut [&mut Tensor],
    exp_avg_sqs: &mut [&mut Tensor],
    adamw: AdamW,
) -> Result<(), TchError> {
    let count = weights.len();
    if [gradients.len(), exp_avgs.len(), exp_avg_sqs.len()] != [count; 3] || count == 0 {
        return Err(TchError::Shape(format!("AdamW needs lists of {count} entries, one per weight")));
    }
    let pointers = |tensors: &[&mut Tensor]| tensors.iter().map(|tensor| tensor.as_ptr()).collect::<Vec<_>>();
    let (weights, exp_avgs, exp_avg_sqs) = (pointers(weights), pointers(exp_avgs), pointers(exp_avg_sqs));
    let gradients: Vec<_> = gradients.iter().map(|tensor| tensor.as_ptr()).collect();
    told(|message, message_bytes| {
        // SAFETY: each list holds `count` pointers to live tensors, borrowed alone where they are changed; libtorch checks
        // that they fit together.
        unsafe {
            hatchery_fused_adamw(
                weights.as_ptr(),
                gradients.as_ptr(),
                exp_avgs.as_ptr(),
                exp_avg_sqs.as_ptr(),
                count,
                adamw.update as f64,
                adamw.lr,
                adamw.beta1,
                adamw.beta2,
                adamw.weight_decay,
                adamw.epsilon,
                message,
                message_bytes,
            )
        }
    })
}
