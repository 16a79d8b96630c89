//! From logits to a byte. What may be asked is checked in [`SamplingParams`].

use std::collections::VecDeque;

use hatchery_common::field::{FieldError, check_range};
pub use hatchery_common::generate::{RawSamplingParams, SamplingParams};
use serde::{Deserialize, Serialize};

/// The bytes that can be sampled; the first tokens of every vocabulary.
const BYTES: usize = 256;

/// The `draw`-th random number of `seed`, in 0..1: a pure function of the two, the same on every platform.
///
/// It is output number `draw` (from 0) of SplitMix64 started at `seed`, its upper 53 bits as a fraction.
pub fn random_at(seed: u64, draw: u64) -> f64 {
    let mut z = seed.wrapping_add(draw.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 11) as f64 / (1_u64 << 53) as f64
}

/// Chooses bytes; counts its draws and remembers the last bytes. Written down and read back, it goes on as it would
/// have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawSampler")]
pub struct Sampler {
    params: SamplingParams,
    draws: u64,
    /// The bytes that the repetition penalty falls on, oldest first.
    seen: VecDeque<u8>,
}

/// A sampler as it was written down, not yet checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSampler {
    params: SamplingParams,
    draws: u64,
    seen: VecDeque<u8>,
}

impl TryFrom<RawSampler> for Sampler {
    type Error = FieldError;

    fn try_from(RawSampler { params, draws, seen }: RawSampler) -> Result<Self, FieldError> {
        check_range("seen.length", seen.len(), 0, SamplingParams::REPETITION_WINDOW)?;
        Ok(Self { params, draws, seen })
    }
}

impl Sampler {
    /// A sampler before its first draw.
    pub fn new(params: &SamplingParams) -> Self {
        Self { params: *params, draws: 0, seen: VecDeque::new() }
    }

    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Random numbers drawn so far.
    pub fn draws(&self) -> u64 {
        self.draws
    }

    /// The same memory of bytes, but from here on by other `params`, from their seed's first draw.
    #[must_use]
    pub fn with_params(self, params: &SamplingParams) -> Self {
        Self { params: *params, draws: 0, ..self }
    }

    /// Tells of bytes that came otherwise than by choice, such as a prompt, for the repetition penalty.
    pub fn see(&mut self, bytes: &[u8]) {
        self.seen.extend(&bytes[bytes.len().saturating_sub(SamplingParams::REPETITION_WINDOW)..]);
        self.seen.drain(..self.seen.len().saturating_sub(SamplingParams::REPETITION_WINDOW));
    }

    /// Tells of bytes that another sampler with the same parameters chose from here on: this one then stands where that one
    /// stood after them, its draws counted too.
    pub fn follow(&mut self, bytes: &[u8]) {
        if !self.params.raw().greedy {
            self.draws += bytes.len() as u64;
        }
        self.see(bytes);
    }

    /// Chooses a byte by the first 256 of `logits`; further ones belong to tokens that are no bytes, and are never
    /// chosen. Of equal logits the lowest byte counts as the likeliest. None if one of them is not a finite number,
    /// which weights far too large can bring about, or if there are fewer than 256.
    pub fn choose(&mut self, logits: &[f32]) -> Option<u8> {
        let mut logits: [f32; BYTES] = *logits.first_chunk()?;
        self.penalise(&mut logits);
        if !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        let ranked = ranked(&logits);
        let chosen = if self.params.raw().greedy {
            ranked[0]
        } else {
            let random = random_at(self.params.raw().seed, self.draws);
            self.draws += 1;
            let kept = self.params.raw().top_k.map_or(BYTES, |top_k| BYTES.min(top_k as usize));
            self.draw(&logits, &ranked[..kept], random)
        };
        self.see(&[chosen]);
        Some(chosen)
    }

    /// Puts the repetition penalty on each byte seen lately, once.
    fn penalise(&self, logits: &mut [f32; BYTES]) {
        let penalty = self.params.raw().repetition_penalty as f32;
        let mut is_seen = [false; BYTES];
        for byte in &self.seen {
            is_seen[usize::from(*byte)] = true;
        }
        for (logit, _) in logits.iter_mut().zip(is_seen).filter(|(_, is_seen)| *is_seen) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }

    /// The byte of `ranked` (likeliest first, not empty) on which `random` falls.
    fn draw(&self, logits: &[f32; BYTES], ranked: &[u8], random: f64) -> u8 {
        let logit = |byte: u8| f64::from(logits[usize::from(byte)]);
        let highest = logit(ranked[0]);
        // Of the likeliest byte it is 1.
        let weight = |byte: u8| ((logit(byte) - highest) / self.params.raw().temperature).exp();
        let mut sums = [0.0; BYTES];
        let mut sum = 0.0;
        for (slot, byte) in sums.iter_mut().zip(ranked) {
            sum += weight(*byte);
            *slot = sum;
        }
        let sums = &sums[..ranked.len()];
        // The first byte that reaches the share is kept, so one always is.
        let last_by_top_p = match self.params.raw().top_p {
            None => sums.len() - 1,
            Some(top_p) => sums.partition_point(|upto| *upto < top_p * sum).min(sums.len() - 1),
        };
        let last_by_min_p = match self.params.raw().min_p {
            None => sums.len() - 1,
            Some(min_p) => ranked.partition_point(|byte| weight(*byte) >= min_p) - 1,
        };
        let last = last_by_top_p.min(last_by_min_p);
        let target = random * sums[last];
        ranked[sums.partition_point(|upto| *upto <= target).min(last)]
    }
}

/// The bytes by falling logits, which are finite; of equal ones the lower byte first.
fn ranked(logits: &[f32; BYTES]) -> [u8; BYTES] {
    const SIGN: u32 = 1 << 31;
    // Whole numbers in the same order as the logits, the byte in their lowest digits: sorted without comparing floats.
    let mut keys: [u64; BYTES] = std::array::from_fn(|byte| {
        // Both zeros are equal.
        let bits = (logits[byte] + 0.0).to_bits();
        let rising = if bits & SIGN == 0 { bits | SIGN } else { !bits };
        u64::from(!rising) << 8 | byte as u64
    });
    keys.sort_unstable();
    keys.map(|key| key as u8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_are_ranked_by_logit_and_then_by_themselves(
            logits in proptest::collection::vec(prop_oneof![Just(0.0), Just(-0.0), -9.0_f32..9.0, Just(1.0)], BYTES),
        ) {
            let logits: [f32; BYTES] = logits.try_into().expect("as many as there are bytes");
            let mut expected: Vec<u8> = (0..=255).collect();
            expected.sort_by(|a, b| {
                let (a, b) = (logits[usize::from(*a)], logits[usize::from(*b)]);
                b.partial_cmp(&a).expect("finite")
            });
            prop_assert_eq!(ranked(&logits).to_vec(), expected);
        }
    }
}
