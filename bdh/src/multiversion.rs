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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::{
        loops::{WeightedRow, add_rows, dot, multiply_tile, normalise},
        model::TILE,
        number::Number,
        sampling::random_at,
    };

    const WIDTH: usize = 77;
    const ROWS: usize = 9;

    fn random(seed: u64, index: usize) -> f32 {
        random_at(seed, index as u64) as f32 - 0.5
    }

    /// Every inner loop once; all that comes out.
    struct Probe<'a, N> {
        tile: &'a [[N; TILE]],
        found: &'a mut Vec<f32>,
    }

    impl<N: Number> Work for Probe<'_, N> {
        fn run<V: Vector>(self) {
            let mut x: Vec<f32> = (0..ROWS * WIDTH).map(|index| random(1, index)).collect();
            x.chunks_exact_mut(WIDTH).for_each(normalise::<V>);
            let mut products = [[0.0; TILE]; ROWS];
            multiply_tile::<N, V>(&x, self.tile, &mut products);
            let row = |index: usize| WeightedRow { row: index as u32, weight: random(2, index) };
            let rows: Vec<_> = (0..WIDTH).step_by(3).map(row).collect();
            add_rows::<N, V, true>(self.tile, &rows, &mut products[0]);
            self.found.push(dot::<N, V>(&x, self.tile.as_flattened()));
            self.found.extend(products.as_flattened());
        }
    }

    fn compare<N: Number>() {
        let tile: Vec<[N; TILE]> = (0..WIDTH)
            .map(|row| std::array::from_fn(|column| N::from_f32(random(3, row * TILE + column))))
            .collect();
        let (mut wide, mut portable) = (Vec::new(), Vec::new());
        run(Probe { tile: &tile, found: &mut wide });
        Probe { tile: &tile, found: &mut portable }.run::<simd::Portable>();
        assert_eq!(wide.len(), 1 + ROWS * TILE);
        let magnitude = portable.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        for (wide, portable) in wide.iter().zip(&portable) {
            assert!((wide - portable).abs() < 2e-6 * magnitude, "{wide} and {portable}");
        }
    }

    #[test]
    fn all_vectors_agree_to_rounding() {
        compare::<f32>();
        compare::<bf16>();
    }
}
