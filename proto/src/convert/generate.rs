//! Asking a model for new bytes, and its answer.

use hatchery_common::{
    field::FieldError,
    generate::{
        FinishReason, GenerationFinished, GenerationOrder, GenerationPart, PROMPT_BYTES_MAX,
        RawSamplingParams, SamplingParams, StopStrings,
    },
    id::Name,
};

use super::{
    enums::Enumeration,
    fields::{amount, at_most, missing, needed, parsed, parsed_optional},
};
use crate::v1::{self, generate_response};

impl From<SamplingParams> for v1::Sampling {
    fn from(params: SamplingParams) -> Self {
        let raw = RawSamplingParams::from(params);
        Self {
            temperature: Some(raw.temperature),
            top_k: raw.top_k,
            seed: Some(raw.seed),
            greedy: raw.greedy,
            top_p: raw.top_p,
            min_p: raw.min_p,
            repetition_penalty: Some(raw.repetition_penalty),
        }
    }
}

impl TryFrom<v1::Sampling> for SamplingParams {
    type Error = FieldError;

    fn try_from(sampling: v1::Sampling) -> Result<Self, FieldError> {
        let defaults = RawSamplingParams::default();
        Self::new(RawSamplingParams {
            temperature: sampling.temperature.unwrap_or(defaults.temperature),
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            seed: sampling.seed.unwrap_or(defaults.seed),
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
            stop: StopStrings::new(generation.stop)?,
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
            finish_reason: finished.finish_reason.number(),
            device: finished.device.map(|device| device.to_string()),
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
            finish_reason: FinishReason::read("finish_reason", finished.finish_reason)?,
            device: parsed_optional("device", finished.device.as_deref())?,
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
