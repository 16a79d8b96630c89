//! The border to libtorch's C++ where tch has no function for it, and to GPUs where libtorch has none; everything unsafe
//! about both stays here.
#![allow(unsafe_code)]

mod adamw;
mod gpu;
pub mod kernels;
mod message;
mod product;

pub use adamw::{AdamW, fused_adamw, has_fused_adamw};
pub use gpu::{CudaMemory, allow_tf32, cuda_memory, synchronize_cuda};
pub use product::wide_product;

// Links libtorch.
use torch_sys as _;
