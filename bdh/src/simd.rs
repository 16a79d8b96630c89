//! Eight f32 side by side, on x86-64 with AVX2, on arm64, and on anything else.
//!
//! All of the crate's vector instructions are here, with all that is unsafe about them. Compilers find them by
//! themselves in simple loops, but not in those that need many sums in registers at once.
#![allow(clippy::inline_always, reason = "each function is an instruction or two")]

use half::bf16;

/// How many there are in a vector.
pub(crate) const LANES: usize = 8;

/// Eight f32. Where products are added without rounding in between, all implementations give the same bits.
pub(crate) trait Vector: Copy {
    fn splat(value: f32) -> Self;
    fn load(values: &[f32; LANES]) -> Self;
    fn store(self, values: &mut [f32; LANES]);
    fn load_bf16(values: &[bf16; LANES]) -> Self;
    fn add(self, other: Self) -> Self;
    /// self + a * b
    fn add_product(self, a: Self, b: Self) -> Self;

    /// self + a * b for single numbers, rounded as in [`Vector::add_product`].
    fn add_product_of_one(sum: f32, a: f32, b: f32) -> f32;

    /// The sum of the eight: halves are added onto halves.
    #[inline(always)]
    fn total(self) -> f32 {
        let mut values = [0.0; LANES];
        self.store(&mut values);
        let values: [f32; 4] = std::array::from_fn(|i| values[i] + values[i + 4]);
        (values[0] + values[2]) + (values[1] + values[3])
    }
}

/// Asks for `numbers` to be brought near, because they will be read soon.
#[inline(always)]
#[allow(unsafe_code, reason = "a hint, which changes nothing but the time that reading takes")]
pub(crate) fn prefetch<T>(numbers: &[T]) {
    const CACHE_LINE_BYTES: usize = 64;
    let start = numbers.as_ptr().cast::<u8>();
    for offset in (0..size_of_val(numbers)).step_by(CACHE_LINE_BYTES) {
        let line = start.wrapping_add(offset);
        // SAFETY: no address is wrong for a hint.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
        }
        // SAFETY: as above; there is no stable function for it yet.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = line;
    }
}

/// For any processor, product and sum each rounded by itself.
#[cfg(any(test, not(target_arch = "aarch64")))]
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

#[cfg(any(test, not(target_arch = "aarch64")))]
impl Vector for Portable {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        Self(*values)
    }

    #[inline(always)]
    fn store(self, values: &mut [f32; LANES]) {
        *values = self.0;
    }

    #[inline(always)]
    fn load_bf16(values: &[bf16; LANES]) -> Self {
        Self(values.map(bf16_to_f32))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }

    #[inline(always)]
    fn add_product_of_one(sum: f32, a: f32, b: f32) -> f32 {
        sum + a * b
    }
}

/// A bf16's bits are the upper half of an f32's.
#[inline(always)]
pub(crate) fn bf16_to_f32(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// The nearest, of two equally near ones the even. Without branches, unlike the library's; what is not a number stays
/// so, as far as arithmetic can have made it.
#[inline(always)]
pub(crate) fn f32_to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    bf16::from_bits((bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
}

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "the processor's own instructions")]
mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm_loadu_si128, _mm256_add_ps, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_fmadd_ps,
        _mm256_loadu_ps, _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    };

    use half::bf16;

    use super::{LANES, Vector};

    /// AVX2 and FMA. To be used only in functions compiled for both, behind a check that the processor has them: that
    /// is what makes every block below safe. Loads and stores are of arrays of the right size, at any alignment.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256);

    impl Vector for Avx2 {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(value)) }
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            unsafe { Self(_mm256_loadu_ps(values.as_ptr())) }
        }

        #[inline(always)]
        fn store(self, values: &mut [f32; LANES]) {
            unsafe { _mm256_storeu_ps(values.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn load_bf16(values: &[bf16; LANES]) -> Self {
            unsafe {
                let halves = _mm_loadu_si128(values.as_ptr().cast());
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))))
            }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            unsafe { Self(_mm256_add_ps(self.0, other.0)) }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0)) }
        }

        #[inline(always)]
        fn add_product_of_one(sum: f32, a: f32, b: f32) -> f32 {
            a.mul_add(b, sum)
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;

#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code, reason = "the processor's own instructions, which every arm64 has")]
mod neon {
    use std::arch::aarch64::{
        float32x4_t, vaddq_f32, vdupq_n_f32, vfmaq_f32, vget_high_u16, vget_low_u16, vld1q_f32, vld1q_u16,
        vreinterpretq_f32_u32, vshll_n_u16, vst1q_f32,
    };

    use half::bf16;

    use super::{LANES, Vector};

    /// Two of NEON's vectors of four. Loads and stores are of arrays of the right size, at any alignment.
    #[derive(Clone, Copy)]
    pub(crate) struct Neon(float32x4_t, float32x4_t);

    impl Vector for Neon {
        #[inline(always)]
        fn splat(value: f32) -> Self {
            unsafe { Self(vdupq_n_f32(value), vdupq_n_f32(value)) }
        }

        #[inline(always)]
        fn load(values: &[f32; LANES]) -> Self {
            unsafe { Self(vld1q_f32(values.as_ptr()), vld1q_f32(values[4..].as_ptr())) }
        }

        #[inline(always)]
        fn store(self, values: &mut [f32; LANES]) {
            unsafe {
                vst1q_f32(values.as_mut_ptr(), self.0);
                vst1q_f32(values[4..].as_mut_ptr(), self.1);
            }
        }

        #[inline(always)]
        fn load_bf16(values: &[bf16; LANES]) -> Self {
            unsafe {
                let halves = vld1q_u16(values.as_ptr().cast());
                Self(
                    vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(halves))),
                    vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(halves))),
                )
            }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            unsafe { Self(vaddq_f32(self.0, other.0), vaddq_f32(self.1, other.1)) }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { Self(vfmaq_f32(self.0, a.0, b.0), vfmaq_f32(self.1, a.1, b.1)) }
        }

        #[inline(always)]
        fn add_product_of_one(sum: f32, a: f32, b: f32) -> f32 {
            a.mul_add(b, sum)
        }
    }
}
