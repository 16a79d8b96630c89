//! Asking a model for new bytes: the request and what comes back.

use serde::{Deserialize, Serialize};

use crate::{
    field::{FieldError, check_range},
    id::{CheckpointId, Name, NodeId},
};

/// Longest prompt, in bytes.
pub const PROMPT_BYTES_MAX: usize = 64 * 1024;
/// Most new bytes in one answer.
pub const NEW_BYTES_MAX: u32 = 65_536;

/// How new bytes are chosen, not yet checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawSampling {
    /// Divides the logits; none: 1.
    pub temperature: Option<f64>,
    /// Only the likeliest so many; none: all.
    pub top_k: Option<u32>,
    /// The same seed gives the same bytes; none: 0.
    pub seed: Option<u64>,
    /// Always the likeliest byte.
    pub greedy: bool,
}

/// How new bytes are chosen, checked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawSampling", into = "RawSampling")]
pub struct Sampling(RawSampling);

impl Sampling {
    /// Checks every field; the error names the first wrong one.
    pub fn new(raw: RawSampling) -> Result<Self, FieldError> {
        if let Some(temperature) = raw.temperature
            && !(temperature > 0.0 && temperature <= 100.0)
        {
            return Err(FieldError::new(
                "temperature",
                format!(
                    "must be above 0 and at most 100, not {temperature}; for the likeliest byte use greedy"
                ),
            ));
        }
        if let Some(top_k) = raw.top_k {
            check_range("top_k", top_k, 1, 256)?;
        }
        Ok(Self(raw))
    }

    /// Always the likeliest byte.
    pub fn greedy() -> Self {
        Self(RawSampling { greedy: true, ..RawSampling::default() })
    }

    /// The fields.
    pub fn raw(&self) -> &RawSampling {
        &self.0
    }
}

impl TryFrom<RawSampling> for Sampling {
    type Error = FieldError;

    fn try_from(raw: RawSampling) -> Result<Self, FieldError> {
        Self::new(raw)
    }
}

impl From<Sampling> for RawSampling {
    fn from(sampling: Sampling) -> Self {
        sampling.0
    }
}

/// What a model is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationOrder {
    /// Which model.
    pub checkpoint: CheckpointId,
    /// The bytes before.
    pub prompt: Vec<u8>,
    /// Most new bytes.
    pub max_bytes: u32,
    /// How they are chosen.
    pub sampling: Sampling,
}

impl GenerationOrder {
    /// Checks the sizes; the error names the field.
    pub fn check(&self) -> Result<(), FieldError> {
        check_range("prompt", self.prompt.len(), 0, PROMPT_BYTES_MAX)
            .map_err(|error| FieldError::new(error.field, format!("its length {}", error.problem)))?;
        check_range("max_bytes", self.max_bytes, 1, NEW_BYTES_MAX)?;
        Ok(())
    }
}

/// What comes back, in this order: [`Chosen`](Self::Chosen), bytes, [`Finished`](Self::Finished).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "snake_case")]
pub enum GenerationPart {
    /// Who answers.
    Chosen {
        /// The node.
        node: NodeId,
        /// Its name.
        node_name: Name,
        /// The checkpoint.
        checkpoint: CheckpointId,
    },
    /// New bytes, in order.
    Text {
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// All bytes are made.
    Finished(GenerationFinished),
}

/// The figures of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationFinished {
    /// From the node's receipt of the request to its last byte.
    pub latency_ms: f64,
    /// To its first byte.
    pub first_byte_ms: f64,
    /// New bytes in all.
    pub bytes: u32,
    /// Whether the model had to be loaded first.
    pub loaded: bool,
}
