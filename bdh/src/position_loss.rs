//! How well a model predicts, by how far it has come: whether a window holds what a block has taught.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    engine::{Engine, EngineError, Window},
    model::Model,
};

/// The loss over the bytes at some positions of streams.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PositionLoss {
    pub start: u64,
    /// The position after the last.
    pub end: u64,
    /// How many bytes were predicted there.
    pub bytes: u64,
    /// Their mean loss in nats; not a number where there are none.
    pub loss: f64,
}

/// The loss of `model` with `window` over `text`, which is cut into streams of `edges.last()` bytes that each begin
/// afresh; what is left over does not count. `edges` ascend and are where one range of positions ends and the next
/// begins; the first begins at 0. The prediction at position t is of the byte at t + 1, as in training.
pub fn loss_by_position(
    model: &Arc<Model>,
    window: Window,
    text: &[u8],
    edges: &[u64],
) -> Result<Vec<PositionLoss>, EngineError> {
    let mut ranges: Vec<PositionLoss> = Vec::new();
    for end in edges {
        let start = ranges.last().map_or(0, |range| range.end);
        ranges.push(PositionLoss { start, end: *end, bytes: 0, loss: 0.0 });
    }
    let stream_len = edges.last().map_or(0, |end| *end as usize);
    if stream_len == 0 {
        return Ok(ranges);
    }
    let fresh = Engine::new(model.clone(), window)?;
    let mut start = 0;
    while let Some(stream) = text.get(start..=start + stream_len) {
        let mut engine = fresh.clone();
        let (mut targets, mut position) = (stream[1..].iter(), 0);
        let mut index = 0;
        engine.prefill_and_visit(&stream[..stream_len], |logits| {
            while position >= ranges[index].end {
                index += 1;
            }
            let target = targets.next().expect("a target for each byte");
            ranges[index].bytes += 1;
            ranges[index].loss += cross_entropy(logits, usize::from(*target));
            position += 1;
        });
        start += stream_len;
    }
    for range in &mut ranges {
        range.loss /= range.bytes as f64;
    }
    Ok(ranges)
}

/// -ln softmax(logits)[target]
fn cross_entropy(logits: &[f32], target: usize) -> f64 {
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - highest).exp()).sum();
    highest + sum.ln() - f64::from(logits[target])
}
