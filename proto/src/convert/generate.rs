//! Asking a model for new bytes, and its answer.

use hatchery_common::{
    field::FieldError,
    generate::{
        GenerationFinished, GenerationOrder, GenerationPart, PROMPT_BYTES_MAX, RawSampling, Sampling,
    },
    id::Name,
};

use super::fields::{amount, at_most, missing, needed, parsed};
use crate::v1::{self, generate_response};

impl From<Sampling> for v1::Sampling {
    fn from(sampling: Sampling) -> Self {
        let raw = RawSampling::from(sampling);
        Self { temperature: raw.temperature, top_k: raw.top_k, seed: raw.seed, greedy: raw.greedy }
    }
}

impl TryFrom<v1::Sampling> for Sampling {
    type Error = FieldError;

    fn try_from(sampling: v1::Sampling) -> Result<Self, FieldError> {
        Self::new(RawSampling {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            seed: sampling.seed,
            greedy: sampling.greedy,
        })
    }
}

/// The order that a [`v1::Generation`] carries; its request id stands beside it.
impl TryFrom<v1::Generation> for GenerationOrder {
    type Error = FieldError;

    fn try_from(generation: v1::Generation) -> Result<Self, FieldError> {
        let order = Self {
            checkpoint: parsed("checkpoint", &generation.checkpoint)?,
            prompt: generation.prompt,
            max_bytes: generation.max_bytes,
            sampling: needed("sampling", generation.sampling)?,
        };
        order.check()?;
        Ok(order)
    }
}

impl From<GenerationFinished> for v1::GenerationFinished {
    fn from(finished: GenerationFinished) -> Self {
        Self {
            latency_ms: finished.latency_ms,
            first_byte_ms: finished.first_byte_ms,
            bytes: finished.bytes,
            loaded: finished.loaded,
        }
    }
}

impl TryFrom<v1::GenerationFinished> for GenerationFinished {
    type Error = FieldError;

    fn try_from(finished: v1::GenerationFinished) -> Result<Self, FieldError> {
        Ok(Self {
            latency_ms: amount("latency_ms", finished.latency_ms)?,
            first_byte_ms: amount("first_byte_ms", finished.first_byte_ms)?,
            bytes: finished.bytes,
            loaded: finished.loaded,
        })
    }
}

impl From<GenerationPart> for v1::GenerateResponse {
    fn from(part: GenerationPart) -> Self {
        let part = match part {
            GenerationPart::Chosen { node, node_name, checkpoint } => {
                generate_response::Part::Chosen(generate_response::Chosen {
                    node: node.to_string(),
                    node_name: node_name.into(),
                    checkpoint: checkpoint.to_string(),
                })
            }
            GenerationPart::Text { bytes } => generate_response::Part::Text(bytes),
            GenerationPart::Finished(finished) => generate_response::Part::Finished(finished.into()),
        };
        Self { part: Some(part) }
    }
}

impl TryFrom<v1::GenerateResponse> for GenerationPart {
    type Error = FieldError;

    fn try_from(response: v1::GenerateResponse) -> Result<Self, FieldError> {
        Ok(match response.part.ok_or_else(|| missing("part"))? {
            generate_response::Part::Chosen(chosen) => Self::Chosen {
                node: parsed("chosen.node", &chosen.node)?,
                node_name: Name::new("chosen.node_name", &chosen.node_name)?,
                checkpoint: parsed("chosen.checkpoint", &chosen.checkpoint)?,
            },
            generate_response::Part::Text(bytes) => {
                at_most("text", bytes.len(), PROMPT_BYTES_MAX, "bytes")?;
                Self::Text { bytes }
            }
            generate_response::Part::Finished(finished) => {
                Self::Finished(finished.try_into().map_err(|error: FieldError| error.within("finished"))?)
            }
        })
    }
}
