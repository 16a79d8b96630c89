//! Work compiled for the widest vectors of the machine that runs it.
//!
//! With AVX2 and on arm64, products are added without rounding in between, and the bits are the same in both. An x86-64
//! processor without AVX2 and FMA gives other last bits.

use crate::simd::{self, Vector};

/// Something to be done with vectors. Its `run`, and all that it calls in loops, is to be inlined always: only then is
/// it compiled for the instructions of `V`.
pub(crate) trait Work {
    fn run<V: Vector>(self);
}

/// Does `work` with the vectors that the processor has.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "the call stands behind a check that the processor has the instructions")]
pub(crate) fn run<W: Work>(work: W) {
    #[target_feature(enable = "avx2,fma")]
    fn with_avx2<W: Work>(work: W) {
        work.run::<simd::Avx2>();
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has AVX2 and FMA.
        unsafe { with_avx2(work) }
    } else {
        work.run::<simd::Portable>();
    }
}

/// Does `work` with the vectors that every arm64 processor has.
#[cfg(target_arch = "aarch64")]
pub(crate) fn run<W: Work>(work: W) {
    work.run::<simd::Neon>();
}

/// Does `work` without vectors that are known.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn run<W: Work>(work: W) {
    work.run::<simd::Portable>();
}
