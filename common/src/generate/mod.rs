//! Asking a model for new bytes: the request and what comes back.

mod sampling;
mod stop;

pub use sampling::{RawSamplingParams, SamplingParams};
use serde::{Deserialize, Serialize};
pub use stop::StopStrings;

use crate::{
    device::Device,
    field::{FieldError, check_range},
    id::{CheckpointId, Name, NodeId},
};

/// Longest prompt, in bytes.
pub const PROMPT_BYTES_MAX: usize = 64 * 1024;
/// Most new bytes in one answer.
pub const NEW_BYTES_MAX: u32 = 65_536;

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
    pub sampling: SamplingParams,
    /// Strings at which the answer ends.
    pub stop: StopStrings,
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

/// Why an answer is at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// It has as many bytes as were asked for.
    #[default]
    MaxBytes,
    /// A stop string was whole; it is not part of the answer.
    StopString,
}

impl FinishReason {
    /// For a person: where the answer ended.
    pub fn describe(self) -> &'static str {
        match self {
            Self::MaxBytes => "the byte limit",
            Self::StopString => "a stop string",
        }
    }
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
    /// Why there are no more.
    pub finish_reason: FinishReason,
    /// The GPU that made its last byte; none: the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
}
