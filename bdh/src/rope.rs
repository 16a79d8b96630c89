//! The rotary angles: exact for any position.
//!
//! A frequency is a whole number of 2^-64 turns, and so is an angle: position times frequency in 64-bit arithmetic,
//! which drops whole turns by itself. So an angle is right to position * 2^-65 turns, at any position.
#![allow(
    clippy::inline_always,
    reason = "part of the inner loops, which are compiled for several instruction sets"
)]

use std::f32::consts::TAU;

use crate::simd::Vector;

/// Base of the rotary frequencies.
const THETA: f64 = 65_536.0;

/// f_i = theta^(-2i / M) / 2 pi for the pairs i of M neurons, in 2^-64 turns for each position.
pub(crate) fn frequencies(neurons: usize) -> Vec<u64> {
    (0..neurons / 2)
        .map(|pair| {
            let turns = THETA.powf(-((2 * pair) as f64) / neurons as f64) / std::f64::consts::TAU;
            (turns * 2_f64.powi(64)) as u64
        })
        .collect()
}

/// Cosine and sine of the angle at `position`, to 1e-7.
///
/// Powers of the angle within an eighth of a turn, then as many quarter turns as are missing.
#[inline(always)]
pub(crate) fn cosine_and_sine<V: Vector>(position: u64, frequency: u64) -> [f32; 2] {
    // The upper 32 bits are as exact as an f32 can be.
    let turns = (position.wrapping_mul(frequency) >> 32) as u32;
    let quarters = turns.wrapping_add(1 << 29) >> 30;
    let angle = turns.wrapping_sub(quarters << 30) as i32 as f32 * (TAU / 4_294_967_296.0);
    let square = angle * angle;
    let next = |sum: f32, coefficient: f32| V::add_product_of_one(coefficient, sum, square);
    let (mut sine, mut cosine) = (1.0 / 362_880.0, 1.0 / 40_320.0);
    sine = next(sine, -1.0 / 5040.0);
    cosine = next(cosine, -1.0 / 720.0);
    sine = next(sine, 1.0 / 120.0);
    cosine = next(cosine, 1.0 / 24.0);
    sine = next(sine, -1.0 / 6.0);
    cosine = next(cosine, -0.5);
    sine = angle * next(sine, 1.0);
    cosine = next(cosine, 1.0);
    let (cosine, sine) = if quarters & 1 == 0 { (cosine, sine) } else { (sine, cosine) };
    let negate = |value: f32, sign: u32| f32::from_bits(value.to_bits() ^ (sign << 31));
    [negate(cosine, (quarters.wrapping_add(1) >> 1) & 1), negate(sine, (quarters >> 1) & 1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Portable;

    /// In whole numbers of 128 bits and f64.
    fn exact(position: u64, frequency: u64) -> [f64; 2] {
        let turns = (u128::from(position) * u128::from(frequency)) as u64;
        let angle = turns as f64 / 2_f64.powi(64) * std::f64::consts::TAU;
        [angle.cos(), angle.sin()]
    }

    #[test]
    fn angles_are_exact_at_every_position() {
        let all = frequencies(2048);
        for position in
            (0..300).chain([10_000_000, 10_000_001, u64::from(u32::MAX), (1 << 32) + 1, 1 << 40, 1 << 62])
        {
            for frequency in &all {
                let expected = exact(position, *frequency);
                let found = cosine_and_sine::<Portable>(position, *frequency);
                for (found, expected) in found.into_iter().zip(expected) {
                    let error = (f64::from(found) - expected).abs();
                    assert!(error < 1.5e-7, "{position} x {frequency}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn frequencies_are_those_published() {
        let all = frequencies(64);
        for (pair, frequency) in all.iter().enumerate() {
            let published = THETA.powf(-((2 * pair) as f64) / 64.0) / std::f64::consts::TAU;
            let error = (*frequency as f64 / 2_f64.powi(64) / published - 1.0).abs();
            assert!(error < 1e-13, "{pair}: {error:e}");
        }
    }
}
