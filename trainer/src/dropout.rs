//! Dropout without a stored mask and without a generator's state: whether a neuron is dropped follows from the seed, the
//! step and the neuron's place alone. So it is the same on every device, in any order, and again in the backward pass.
//!
//! A row (layer, head, sequence, token) has a key of 64 bits; the hash of a neuron's index under that key decides. The
//! hash works on 32-bit words, which every device multiplies at full width.

use hatchery_trainer_shim::kernels::Drops;
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    data::upload,
    rng::{Purpose, bits, stream},
};

/// Odd multipliers of the hash's two rounds; spread bits as measured by Chris Wellons' search for 32-bit hashes (2018).
const ROUND_1: u32 = 0x7FEB_352D;
const ROUND_2: u32 = 0x846C_A68B;

/// What one step drops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    key: u64,
    /// Hashes below are dropped.
    threshold: u32,
    /// The row of the batch that the first sequence at hand is.
    first_sequence: u64,
    probability: f64,
}

/// The key of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowKey {
    first: u32,
    second: u32,
}

/// The keys of rows side by side, each half of them a vector.
#[derive(Clone, Copy, Debug)]
pub struct RowKeys<const COUNT: usize> {
    first: [u32; COUNT],
    second: [u32; COUNT],
}

impl<const COUNT: usize> Default for RowKeys<COUNT> {
    fn default() -> Self {
        Self { first: [0; COUNT], second: [0; COUNT] }
    }
}

impl<const COUNT: usize> RowKeys<COUNT> {
    /// Puts a row's key in its place.
    pub fn set(&mut self, place: usize, key: RowKey) {
        (self.first[place], self.second[place]) = (key.first, key.second);
    }

    /// The key of the row in a place.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "part of loops that are compiled for several instruction sets")]
    pub fn get(&self, place: usize) -> RowKey {
        RowKey { first: self.first[place], second: self.second[place] }
    }
}

/// Where a row stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// From 0.
    pub layer: usize,
    /// From 0.
    pub head: usize,
    /// Within the batch at hand, from 0.
    pub sequence: usize,
    /// From 0.
    pub token: usize,
}

impl Dropout {
    /// What step `step` of a run with `seed` drops at `probability`, which is at least 0 and below 1. None: nothing.
    pub fn new(probability: f64, seed: u64, step: u64) -> Option<Self> {
        let threshold = (probability * 2f64.powi(32)) as u32;
        let key = bits(seed, Purpose::Dropout, step, 0);
        (probability > 0.0).then_some(Self { key, threshold, first_sequence: 0, probability })
    }

    /// The same for a part of the batch that starts with its sequence `first`.
    #[must_use]
    pub fn from_sequence(self, first: u64) -> Self {
        Self { first_sequence: first, ..self }
    }

    /// What kept neurons are multiplied by, so that the mean stays.
    pub fn scale(&self) -> f64 {
        1.0 / (1.0 - self.probability)
    }

    /// The same for the kernels of a GPU, in layer `layer`.
    pub fn for_kernels(&self, layer: usize) -> Drops {
        Drops {
            stream: stream(self.key, Purpose::Dropout),
            first_sequence: self.first_sequence,
            layer: layer as u32,
            threshold: self.threshold,
            scale: self.scale() as f32,
        }
    }

    /// The key of a row.
    pub fn row(&self, place: Place) -> RowKey {
        let line = (place.layer as u64) << 32 | place.head as u64;
        let row = (self.first_sequence + place.sequence as u64) << 32 | place.token as u64;
        let key = bits(self.key, Purpose::Dropout, line, row);
        RowKey { first: key as u32, second: (key >> 32) as u32 }
    }

    /// Whether neuron `index` of a row is kept.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "part of loops that are compiled for several instruction sets")]
    pub fn keeps(&self, row: RowKey, index: u32) -> bool {
        hash(row, index) >= self.threshold
    }

    /// The same as numbers, 0 or [`Self::scale`], for a batch of B sequences of T tokens with M neurons in each of H
    /// heads: H x B*T x M of `kind` on `device`, made of libtorch's operations on 32-bit words.
    pub fn mask(
        &self,
        layer: usize,
        [heads, sequences, tokens, neurons]: [usize; 4],
        kind: Kind,
        device: Device,
    ) -> Result<Tensor, TchError> {
        let mut rows = Vec::with_capacity(heads * sequences * tokens);
        for head in 0..heads {
            for sequence in 0..sequences {
                rows.extend((0..tokens).map(|token| self.row(Place { layer, head, sequence, token })));
            }
        }
        let size = [heads as i64, (sequences * tokens) as i64, 1];
        let keys = |part: fn(&RowKey) -> u32| {
            let words: Vec<i32> = rows.iter().map(|row| part(row).cast_signed()).collect();
            upload(&Tensor::f_from_slice(&words)?.f_view_(size)?, device)
        };
        let mut word = Tensor::f_arange(neurons as i64, (Kind::Int, device))?
            .f_bitwise_xor_tensor(&keys(|row| row.first)?)?;
        // libtorch shifts signed words, which copies the sign: cut off what it copies.
        let fold = |word: &mut Tensor, shift: i64| -> Result<(), TchError> {
            let upper =
                word.f_bitwise_right_shift_tensor_scalar(shift)?.f_bitwise_and((1i64 << (32 - shift)) - 1)?;
            let _ = word.f_bitwise_xor_tensor_(&upper)?;
            Ok(())
        };
        fold(&mut word, 16)?;
        let _ = word.f_mul_scalar_(i64::from(ROUND_1.cast_signed()))?;
        let _ = word.f_bitwise_xor_tensor_(&keys(|row| row.second)?)?;
        fold(&mut word, 15)?;
        let _ = word.f_mul_scalar_(i64::from(ROUND_2.cast_signed()))?;
        fold(&mut word, 16)?;
        // An unsigned comparison by signed words: both sides moved by half the range.
        let _ = word.f_bitwise_xor_(i64::from(i32::MIN))?;
        let threshold = i64::from((self.threshold ^ (1 << 31)).cast_signed());
        word.f_ge(threshold)?.f_to_kind(kind)?.f_mul_scalar(self.scale())
    }
}

/// Two rounds of multiply and fold, the second key between them.
#[inline(always)]
#[allow(clippy::inline_always, reason = "part of loops that are compiled for several instruction sets")]
fn hash(row: RowKey, index: u32) -> u32 {
    let mut word = index ^ row.first;
    word ^= word >> 16;
    word = word.wrapping_mul(ROUND_1) ^ row.second;
    word ^= word >> 15;
    word = word.wrapping_mul(ROUND_2);
    word ^ (word >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: [usize; 4] = [3, 4, 40, 512];

    fn kept(dropout: &Dropout, layer: usize) -> Vec<bool> {
        let [heads, sequences, tokens, neurons] = SIZE;
        let mut kept = Vec::new();
        for head in 0..heads {
            for sequence in 0..sequences {
                for token in 0..tokens {
                    let row = dropout.row(Place { layer, head, sequence, token });
                    kept.extend((0..neurons).map(|index| dropout.keeps(row, index as u32)));
                }
            }
        }
        kept
    }

    #[test]
    fn libtorchs_mask_is_the_same_as_the_loops() {
        for probability in [0.1, 0.5, 0.9] {
            let dropout = Dropout::new(probability, 5, 11).unwrap();
            let mask = dropout.mask(2, SIZE, Kind::Float, Device::Cpu).unwrap();
            let mask = Vec::<f32>::try_from(mask.flatten(0, -1)).unwrap();
            let scale = dropout.scale() as f32;
            let expected = kept(&dropout, 2).into_iter().map(|kept| if kept { scale } else { 0.0 });
            assert!(mask.into_iter().eq(expected), "{probability}");
        }
    }

    #[test]
    fn what_is_kept_is_the_wanted_share_and_knows_nothing_of_its_neighbours() {
        let [.., tokens, neurons] = SIZE;
        for probability in [0.1, 0.5] {
            let dropout = Dropout::new(probability, 1, 3).unwrap();
            let here = kept(&dropout, 0);
            let next_step = kept(&Dropout::new(probability, 1, 4).unwrap(), 0);
            let other_seed = kept(&Dropout::new(probability, 2, 3).unwrap(), 0);
            let count = here.len() as f64;
            let share = here.iter().filter(|kept| **kept).count() as f64 / count;
            let deviation = (probability * (1.0 - probability) / count).sqrt();
            assert!((share - (1.0 - probability)).abs() < 5.0 * deviation, "{share}");
            // Each row and each column has its share too.
            for (stride, step, length) in [(neurons, 1, neurons), (1, neurons, tokens)] {
                for line in 0..8 {
                    let kept = (0..length).filter(|i| here[line * stride + i * step]).count() as f64;
                    let deviation = (probability * (1.0 - probability) * length as f64).sqrt();
                    assert!((kept - (1.0 - probability) * length as f64).abs() < 5.0 * deviation);
                }
            }
            // Two events are independent if they happen together as often as the product of their shares says.
            let correlation = |other: &dyn Fn(usize) -> bool| {
                let both = (0..here.len()).filter(|i| !here[*i] && !other(*i)).count() as f64 / count;
                (both - probability * probability) / (probability * (1.0 - probability))
            };
            let near = 5.0 / count.sqrt();
            for shift in [1, 2, 3, 16, neurons, 7 * neurons, tokens * neurons] {
                let found = correlation(&|i| here[(i + shift) % here.len()]);
                assert!(found.abs() < near, "shift {shift}: {found}");
            }
            let layer = kept(&dropout, 1);
            for other in [&next_step, &other_seed, &layer] {
                assert!(correlation(&|i| other[i]).abs() < near);
            }
        }
    }

    #[test]
    fn a_part_of_a_batch_drops_what_the_batch_drops() {
        let dropout = Dropout::new(0.3, 9, 1).unwrap();
        let place = |sequence| Place { layer: 1, head: 2, sequence, token: 5 };
        assert_eq!(dropout.from_sequence(6).row(place(1)), dropout.row(place(7)));
        assert_eq!(Dropout::new(0.0, 9, 1), None);
    }
}
