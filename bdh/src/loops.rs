//! The inner loops, over plain slices, so that the compiler turns each into the widest vector instructions at hand.
//!
//! Every sum has one fixed order and no fused multiply-add, so all machines get the same bits.
#![allow(clippy::inline_always, reason = "the callers are compiled for several instruction sets")]

use crate::model::TILE;

/// Partial sums of a sum over a vector: one for each place in a group of neighbours. One cache line of f32.
const LANES: usize = 16;

/// Adds the partial sums, halves onto halves.
#[inline(always)]
fn total(sums: [f32; LANES]) -> f32 {
    let sums: [f32; 8] = std::array::from_fn(|i| sums[i] + sums[i + 8]);
    let sums: [f32; 4] = std::array::from_fn(|i| sums[i] + sums[i + 4]);
    (sums[0] + sums[2]) + (sums[1] + sums[3])
}

/// a . b
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let ((a_groups, a_rest), (b_groups, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_groups.iter().zip(b_groups) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    a_rest.iter().zip(b_rest).fold(total(sums), |sum, (a, b)| sum + a * b)
}

/// y += factor * x
#[inline(always)]
pub(crate) fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += factor * x;
    }
}

/// x @ tile
#[inline(always)]
pub(crate) fn multiply_tile(x: &[f32], tile: &[[f32; TILE]]) -> [f32; TILE] {
    let mut sums = [0.0; TILE];
    for (x, line) in x.iter().zip(tile) {
        for i in 0..TILE {
            sums[i] += x * line[i];
        }
    }
    sums
}

/// a += r0 s0 + r1 s1, then s0 += r0 x and s1 += r1 x: two rows of a state, read and updated in one pass.
#[inline(always)]
pub(crate) fn read_and_update(
    (s0, s1): (&mut [f32], &mut [f32]),
    [r0, r1]: [f32; 2],
    x: &[f32],
    a: &mut [f32],
) {
    for (((a, x), s0), s1) in a.iter_mut().zip(x).zip(s0).zip(s1) {
        *a += r0 * *s0 + r1 * *s1;
        *s0 += r0 * x;
        *s1 += r1 * x;
    }
}

/// The same where the state is a sum of two, of which only the second is updated: a += r0 (p0 + s0) + r1 (p1 + s1).
#[inline(always)]
pub(crate) fn read_both_and_update(
    (p0, p1): (&[f32], &[f32]),
    (s0, s1): (&mut [f32], &mut [f32]),
    [r0, r1]: [f32; 2],
    x: &[f32],
    a: &mut [f32],
) {
    for (((((a, x), s0), s1), p0), p1) in a.iter_mut().zip(x).zip(s0).zip(s1).zip(p0).zip(p1) {
        *a += r0 * (p0 + *s0) + r1 * (p1 + *s1);
        *s0 += r0 * x;
        *s1 += r1 * x;
    }
}

/// x = norm(x): mean 0, variance 1, no learned scale.
#[inline(always)]
pub(crate) fn normalise(x: &mut [f32]) {
    const EPSILON: f32 = 1e-5;
    let width = x.len() as f32;
    let mut sums = [0.0; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for i in 0..LANES {
            sums[i] += group[i];
        }
    }
    let mean = rest.iter().fold(total(sums), |sum, x| sum + x) / width;
    for x in &mut *x {
        *x -= mean;
    }
    let scale = 1.0 / (dot(x, x) / width + EPSILON).sqrt();
    for x in x {
        *x *= scale;
    }
}
