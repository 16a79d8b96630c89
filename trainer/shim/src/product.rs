//! Sums of products that are not rounded on the way.

use std::ffi::{c_char, c_int};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::message::told;

unsafe extern "C" {
    fn hatchery_wide_product(
        sum: *mut C_tensor,
        a: *const C_tensor,
        b: *const C_tensor,
        is_more: c_int,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
}

/// sum = a b for each of some matrices of bf16 on a GPU of NVIDIA's, or sum += a b if `is_more`; the sum is f32, and no product is
/// rounded to bf16. What does not fit together is an error of libtorch's.
pub fn wide_product(sum: &mut Tensor, a: &Tensor, b: &Tensor, is_more: bool) -> Result<(), TchError> {
    told(|message, message_bytes| {
        // SAFETY: the pointers are those of live tensors, the sum borrowed alone; libtorch checks that they fit together.
        unsafe {
            hatchery_wide_product(
                sum.as_mut_ptr(),
                a.as_ptr(),
                b.as_ptr(),
                is_more.into(),
                message,
                message_bytes,
            )
        }
    })
}
