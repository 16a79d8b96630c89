//! From logits to a byte.

use std::collections::VecDeque;

use hatchery_common::field::{FieldError, check_range};
use serde::{Deserialize, Serialize};

/// The bytes that can be sampled; the first tokens of every vocabulary.
const BYTES: usize = 256;

/// How bytes are chosen, not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawSamplingParams {
    /// Logits are divided by this; below 1 is bolder, above 1 wilder. Above 0, at most [`SamplingParams::TEMPERATURE_MAX`].
    pub temperature: f32,
    /// Only so many of the likeliest bytes can be chosen; none: all.
    pub top_k: Option<u32>,
    /// Only the likeliest bytes that together have at least this share of the probability can be chosen; none: all.
    /// Above 0, at most 1; counted after temperature and `top_k`.
    pub top_p: Option<f32>,
    /// Only bytes with at least this share of the likeliest one's probability can be chosen; none: all. 0 to 1; counted
    /// after temperature.
    pub min_p: Option<f32>,
    /// Makes bytes less likely that are among the last [`SamplingParams::REPETITION_WINDOW`] ones, of prompt and answer:
    /// positive logits are divided by this, negative ones multiplied, before all else. At least 1, which changes
    /// nothing; at most [`SamplingParams::REPETITION_PENALTY_MAX`].
    pub repetition_penalty: f32,
    /// The same seed gives the same choices.
    pub seed: u64,
    /// Always the likeliest byte; of the other fields then only the repetition penalty matters, but all are checked.
    pub greedy: bool,
}

impl Default for RawSamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            seed: 0,
            greedy: false,
        }
    }
}

/// How bytes are chosen, checked. Read its fields through [`SamplingParams::raw`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawSamplingParams", into = "RawSamplingParams")]
pub struct SamplingParams(RawSamplingParams);

impl SamplingParams {
    /// Highest temperature.
    pub const TEMPERATURE_MAX: f32 = 1000.0;
    /// Highest repetition penalty.
    pub const REPETITION_PENALTY_MAX: f32 = 1000.0;
    /// How many bytes back the repetition penalty looks.
    pub const REPETITION_WINDOW: usize = 64;

    /// Checks every field; the error names the first wrong one.
    pub fn new(raw: RawSamplingParams) -> Result<Self, FieldError> {
        if !(raw.temperature > 0.0 && raw.temperature <= Self::TEMPERATURE_MAX) {
            return Err(FieldError::new(
                "temperature",
                format!(
                    "must be above 0 and at most {}, not {}; for the likeliest byte each time choose greedy",
                    Self::TEMPERATURE_MAX,
                    raw.temperature
                ),
            ));
        }
        if let Some(top_k) = raw.top_k {
            check_range("top_k", top_k, 1, u32::MAX)?;
        }
        if let Some(top_p) = raw.top_p
            && !(top_p > 0.0 && top_p <= 1.0)
        {
            return Err(FieldError::new("top_p", format!("must be above 0 and at most 1, not {top_p}")));
        }
        if let Some(min_p) = raw.min_p
            && !(0.0..=1.0).contains(&min_p)
        {
            return Err(FieldError::new("min_p", format!("must be from 0 to 1, not {min_p}")));
        }
        if !(1.0..=Self::REPETITION_PENALTY_MAX).contains(&raw.repetition_penalty) {
            return Err(FieldError::new(
                "repetition_penalty",
                format!(
                    "must be from 1, which changes nothing, to {}, not {}",
                    Self::REPETITION_PENALTY_MAX,
                    raw.repetition_penalty
                ),
            ));
        }
        Ok(Self(raw))
    }

    /// The fields.
    pub fn raw(&self) -> &RawSamplingParams {
        &self.0
    }
}

impl TryFrom<RawSamplingParams> for SamplingParams {
    type Error = FieldError;

    fn try_from(raw: RawSamplingParams) -> Result<Self, FieldError> {
        Self::new(raw)
    }
}

impl From<SamplingParams> for RawSamplingParams {
    fn from(params: SamplingParams) -> Self {
        params.0
    }
}

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

    /// How it chooses.
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

    /// Chooses a byte by the first 256 of `logits`; further ones belong to tokens that are no bytes, and are never
    /// chosen. Of equal logits the lowest byte counts as the likeliest. None if one of them is not a finite number,
    /// which weights far too large can bring about, or if there are fewer than 256.
    pub fn choose(&mut self, logits: &[f32]) -> Option<u8> {
        let mut logits: [f32; BYTES] = *logits.first_chunk()?;
        self.penalise(&mut logits);
        if !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        // A stable sort keeps equal ones in the order of the bytes.
        let mut ranked: [u8; BYTES] = std::array::from_fn(|byte| byte as u8);
        ranked.sort_by(|a, b| {
            let (a, b) = (logits[usize::from(*a)], logits[usize::from(*b)]);
            b.partial_cmp(&a).expect("finite numbers have an order")
        });
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
        let penalty = self.params.raw().repetition_penalty;
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
        let weight = |byte: u8| ((logit(byte) - highest) / f64::from(self.params.raw().temperature)).exp();
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
            Some(top_p) => sums.partition_point(|upto| *upto < f64::from(top_p) * sum).min(sums.len() - 1),
        };
        let last_by_min_p = match self.params.raw().min_p {
            None => sums.len() - 1,
            Some(min_p) => ranked.partition_point(|byte| weight(*byte) >= f64::from(min_p)) - 1,
        };
        let last = last_by_top_p.min(last_by_min_p);
        let target = random * sums[last];
        ranked[sums.partition_point(|upto| *upto <= target).min(last)]
    }
}
