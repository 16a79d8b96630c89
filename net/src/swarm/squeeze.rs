//! Fewer bytes for slow links: a piece's numbers are cut into planes, one for each of their bytes, and compressed.
//!
//! The first byte of weights (sign and most of the exponent) repeats a lot, the last ones are noise; side by side they
//! hide that from a compressor. What this saves of a trained model of the preset seed: 15 % of its weights and its
//! optimizer's moments in f32, 31 % of its weights in bf16; more than half of text, whose numbers have one byte.

use std::sync::{Mutex, PoisonError};

/// How many bytes the numbers of a piece may have.
const WIDTHS: [usize; 3] = [1, 2, 4];
/// The compressor's level: quick, since a link waits for it.
const LEVEL: i32 = 1;
/// A piece is sent as it is unless so much is saved.
const SAVED_SHARE_MIN: f64 = 0.1;
/// After so many pieces at most it is looked again which width is best.
const SAMPLE_EVERY: u32 = 64;

/// Which width is best for the pieces of one blob, as a sample of them shows.
#[derive(Debug, Default)]
pub struct Squeezer(Mutex<Choice>);

#[derive(Clone, Copy, Debug, Default)]
struct Choice {
    /// None: nothing saves enough.
    width: Option<usize>,
    /// Pieces since the last sample.
    age: u32,
    is_known: bool,
}

impl Squeezer {
    /// Whether the next piece may have something to save: the sample says so, or it is time for another one.
    pub fn is_worth_trying(&self) -> bool {
        let choice = self.next_choice();
        !choice.is_known || choice.width.is_some()
    }

    /// The piece with fewer bytes, and the width of its numbers; none if that does not save enough. Takes the time of a
    /// compressor: call it off a runtime's threads.
    pub fn squeeze(&self, piece: &[u8]) -> Option<(u32, Vec<u8>)> {
        let choice = self.next_choice();
        let squeezed = if choice.is_known {
            choice.width.and_then(|width| squeeze(piece, width).map(|bytes| (width, bytes)))
        } else {
            let all = WIDTHS.iter().filter_map(|&width| squeeze(piece, width).map(|bytes| (width, bytes)));
            all.min_by_key(|(_, bytes)| bytes.len())
        };
        let enough = piece.len() as f64 * (1.0 - SAVED_SHARE_MIN);
        let squeezed = squeezed.filter(|(_, bytes)| bytes.len() as f64 <= enough);
        if !choice.is_known {
            let width = squeezed.as_ref().map(|(width, _)| *width);
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Choice { width, age: 0, is_known: true };
        }
        squeezed.map(|(width, bytes)| (width as u32, bytes))
    }

    fn next_choice(&self) -> Choice {
        let mut choice = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        choice.age += 1;
        choice.is_known &= choice.age <= SAMPLE_EVERY;
        *choice
    }
}

/// Each plane is a frame of its own: a frame has one code for all its bytes, which noise beside what repeats spoils (f32
/// weights save 7 % in one frame, 15 % in four). What reads one frame reads several.
fn squeeze(piece: &[u8], width: usize) -> Option<Vec<u8>> {
    let (planes, numbers) = (planes(piece, width), piece.len() / width);
    let mut squeezed = Vec::with_capacity(piece.len());
    for plane in 0..width {
        let end = if plane + 1 == width { planes.len() } else { (plane + 1) * numbers };
        squeezed.extend(zstd::bulk::compress(&planes[plane * numbers..end], LEVEL).ok()?);
    }
    Some(squeezed)
}

/// The piece of `size_bytes` that was squeezed; none if it is not that. Memory is bounded by the size.
pub fn expand(bytes: &[u8], width: u32, size_bytes: u64) -> Option<Vec<u8>> {
    let width = WIDTHS.into_iter().find(|one| *one == width as usize)?;
    let planes = zstd::bulk::decompress(bytes, size_bytes as usize).ok()?;
    (planes.len() as u64 == size_bytes).then(|| interleaved(&planes, width))
}

/// All first bytes of numbers of `width` bytes, then all second ones, and so on; what is left over at the end stays there.
fn planes(bytes: &[u8], width: usize) -> Vec<u8> {
    let numbers = bytes.len() / width;
    let mut planes = Vec::with_capacity(bytes.len());
    for plane in 0..width {
        planes.extend(bytes[..numbers * width].iter().skip(plane).step_by(width));
    }
    planes.extend(&bytes[numbers * width..]);
    planes
}

/// The other way.
fn interleaved(planes: &[u8], width: usize) -> Vec<u8> {
    let numbers = planes.len() / width;
    let mut bytes = Vec::with_capacity(planes.len());
    for number in 0..numbers {
        bytes.extend((0..width).map(|plane| planes[plane * numbers + number]));
    }
    bytes.extend(&planes[numbers * width..]);
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Numbers as trained weights have them: small, of both signs.
    fn weights(count: usize) -> Vec<f32> {
        let mut random = hatchery_swarm::Random::new(3);
        let mut even = move || (random.draw() >> 40) as f32 / (1 << 24) as f32;
        // A sum of twelve is close to normal.
        (0..count).map(|_| ((0..12).map(|_| even()).sum::<f32>() - 6.0) * 0.02).collect()
    }

    fn saved(squeezer: &Squeezer, piece: &[u8]) -> Option<(u32, f64)> {
        let (width, bytes) = squeezer.squeeze(piece)?;
        assert_eq!(expand(&bytes, width, piece.len() as u64).unwrap(), piece);
        Some((width, 1.0 - bytes.len() as f64 / piece.len() as f64))
    }

    #[test]
    fn weights_and_texts_get_smaller_and_noise_stays_as_it_is() {
        let weights = weights(1 << 16);
        let f32s: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        let (width, share) = saved(&Squeezer::default(), &f32s).unwrap();
        assert!(width == 4 && (0.13..0.3).contains(&share), "{width}: {share}");
        let bf16s: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()[2..].to_vec()).collect();
        let (width, share) = saved(&Squeezer::default(), &bf16s).unwrap();
        assert!(width >= 2 && (0.27..0.5).contains(&share), "{width}: {share}");
        let words = ["dragon", "hatchling", "reads", "every", "text", "of", "the", "house", "at", "night"];
        let mut random = hatchery_swarm::Random::new(5);
        let text: String = (0..10_000).map(|_| words[random.below(words.len())].to_owned() + " ").collect();
        let (width, share) = saved(&Squeezer::default(), text.as_bytes()).unwrap();
        assert!(width == 1 && share > 0.5, "{width}: {share}");

        let mut random = hatchery_swarm::Random::new(4);
        let noise: Vec<u8> = (0..1 << 16).map(|_| random.draw() as u8).collect();
        let squeezer = Squeezer::default();
        for _ in 0..2 * SAMPLE_EVERY {
            assert_eq!(squeezer.squeeze(&noise), None);
        }
        // Sooner or later it is seen that the rest of the blob is of another kind.
        let tries = (0..=SAMPLE_EVERY).filter_map(|_| squeezer.squeeze(&f32s)).count();
        assert!(tries >= 1);
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..300), width in 0..3usize) {
            let width = WIDTHS[width];
            prop_assert_eq!(interleaved(&planes(&bytes, width), width), bytes.clone());
            let squeezed = squeeze(&bytes, width).unwrap();
            prop_assert_eq!(expand(&squeezed, width as u32, bytes.len() as u64), Some(bytes.clone()));
            // Nothing else is taken: not another size, nor another width, nor bytes of another kind.
            prop_assert_eq!(expand(&squeezed, width as u32, bytes.len() as u64 + 1), None);
            prop_assert_eq!(expand(&squeezed, 3, bytes.len() as u64), None);
            if !bytes.is_empty() {
                prop_assert_eq!(expand(&squeezed, width as u32, bytes.len() as u64 - 1), None);
            }
            prop_assert!(expand(&bytes, 1, 100).is_none_or(|expanded| expanded.len() == 100));
        }
    }
}
