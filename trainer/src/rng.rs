//! Randomness as a function: the same numbers for the same place, on every platform, with no state to save.

/// What the numbers are for; streams with different purposes have nothing in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Purpose {
    Weights = 1,
    /// Where a training window starts.
    Windows = 2,
    /// The seed of a step's dropout.
    Dropout = 3,
}

/// 64 even bits for place (`a`, `b`) of a seed's stream: three rounds of SplitMix64's mixer, one for each coordinate.
pub fn bits(seed: u64, purpose: Purpose, a: u64, b: u64) -> u64 {
    mix(mix(stream(seed, purpose) ^ a).wrapping_add(b))
}

/// What [`bits`] makes of a seed's purpose before it comes to the place: for those who compute the rest elsewhere.
pub fn stream(seed: u64, purpose: Purpose) -> u64 {
    mix(seed ^ mix(purpose as u64))
}

/// A whole number from 0 to below `bound`, which is above 0. Multiplying and keeping the upper half leaves a bias of
/// at most `bound` / 2^64.
pub fn below(bound: u64, bits: u64) -> u64 {
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

/// Two independent numbers from N(0, 1) out of two words, by Box and Muller's transform in f64. With functions in Rust:
/// the last bit of the system's own differs between systems.
pub fn normal_pair(first: u64, second: u64) -> [f64; 2] {
    // 53 bits, moved by half a step: never 0, whose logarithm is infinite.
    let unit = |word: u64| ((word >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let radius = (-2.0 * libm::log(unit(first))).sqrt();
    let (sin, cos) = libm::sincos(std::f64::consts::TAU * unit(second));
    [radius * cos, radius * sin]
}

/// SplitMix64: a step of its Weyl sequence, then its finalizer.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_purposes_do_not_meet() {
        let mut seen = std::collections::HashSet::new();
        for purpose in [Purpose::Weights, Purpose::Windows, Purpose::Dropout] {
            for seed in 0..4 {
                for a in 0..32 {
                    for b in 0..32 {
                        assert!(seen.insert(bits(seed, purpose, a, b)));
                    }
                }
            }
        }
    }

    #[test]
    fn known_values_stay_known() {
        // SplitMix64's first output from state 0.
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(below(10, u64::MAX), 9);
        assert_eq!(below(10, 0), 0);
    }

    #[test]
    fn normal_numbers_have_their_moments() {
        let numbers: Vec<f64> = (0..50_000)
            .flat_map(|i| normal_pair(bits(7, Purpose::Weights, i, 0), bits(7, Purpose::Weights, i, 1)))
            .collect();
        let n = numbers.len() as f64;
        let mean = numbers.iter().sum::<f64>() / n;
        let variance = numbers.iter().map(|x| x * x).sum::<f64>() / n;
        let kurtosis = numbers.iter().map(|x| x.powi(4)).sum::<f64>() / n;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03 && (kurtosis - 3.0).abs() < 0.15);
    }
}
