//! The border to libtorch's C++ where tch has no function for it; everything unsafe about it stays here.
#![allow(unsafe_code)]

mod adamw;

pub use adamw::{AdamW, fused_adamw, has_fused_adamw};

// Links libtorch.
use torch_sys as _;
