//! How the bytes of an answer are chosen.

use serde::{Deserialize, Serialize};

use crate::field::{FieldError, check_range};

/// How bytes are chosen, not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawSamplingParams {
    /// Logits are divided by this; below 1 is bolder, above 1 wilder. Above 0, at most [`SamplingParams::TEMPERATURE_MAX`].
    pub temperature: f64,
    /// Only so many of the likeliest bytes can be chosen; none: all.
    pub top_k: Option<u32>,
    /// Only the likeliest bytes that together have at least this share of the probability can be chosen; none: all.
    /// Above 0, at most 1; counted after temperature and `top_k`.
    pub top_p: Option<f64>,
    /// Only bytes with at least this share of the likeliest one's probability can be chosen; none: all. 0 to 1; counted
    /// after temperature.
    pub min_p: Option<f64>,
    /// Makes bytes less likely that are among the last [`SamplingParams::REPETITION_WINDOW`] ones, of prompt and answer:
    /// positive logits are divided by this, negative ones multiplied, before all else. At least 1, which changes
    /// nothing; at most [`SamplingParams::REPETITION_PENALTY_MAX`].
    pub repetition_penalty: f64,
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
    pub const TEMPERATURE_MAX: f64 = 1000.0;
    /// Highest repetition penalty.
    pub const REPETITION_PENALTY_MAX: f64 = 1000.0;
    /// How many bytes back the repetition penalty looks.
    pub const REPETITION_WINDOW: usize = 64;

    /// Checks every field; the error names the first wrong one.
    pub fn new(raw: RawSamplingParams) -> Result<Self, FieldError> {
        if !(raw.temperature > 0.0 && raw.temperature <= Self::TEMPERATURE_MAX) {
            return Err(FieldError::new(
                "temperature",
                format!(
                    "must be above 0 and at most {}, not {}; use greedy to always pick the likeliest byte",
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
                    "must be from 1 (no penalty) to {}, not {}",
                    Self::REPETITION_PENALTY_MAX,
                    raw.repetition_penalty
                ),
            ));
        }
        Ok(Self(raw))
    }

    /// Always the likeliest byte.
    pub fn greedy() -> Self {
        Self(RawSamplingParams { greedy: true, ..RawSamplingParams::default() })
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
