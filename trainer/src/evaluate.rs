//! The loss of a model on text that it does not learn from.

use std::f64::consts::LN_2;

use serde::Serialize;
use tch::{Device, Kind, TchError, no_grad_guard};

use crate::{
    data::{Batch, Corpus},
    model::Model,
};

/// Tokens in one pass, unless a single window has more: enough to keep a CPU busy, little enough for any memory.
const PASS_TOKENS: usize = 2048;

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// The same in bits.
    pub bits_per_byte: f64,
    /// Bytes that were predicted.
    pub bytes: u64,
}

/// Whoever can say how well a text is foretold.
pub trait Losses {
    /// Where batches are wanted.
    fn device(&self) -> Device;
    /// The cross-entropies in nats of all targets of `batch`, summed in f64; nothing is dropped.
    fn loss_sum(&mut self, batch: &Batch) -> Result<f64, TchError>;
}

impl Losses for &Model {
    fn device(&self) -> Device {
        Model::device(self)
    }

    fn loss_sum(&mut self, batch: &Batch) -> Result<f64, TchError> {
        let _guard = no_grad_guard();
        let losses = self.losses(&batch.tokens, &batch.targets)?;
        // Summed on the CPU, because an Apple GPU has no f64.
        f64::try_from(losses.f_to_device(Device::Cpu)?.f_sum(Kind::Double)?)
    }
}

/// The mean loss over the windows of `block` tokens at `starts`, dropout off, summed in f64. None: `is_stopped` said so
/// between two passes. There must be a window.
pub fn evaluate(
    model: &mut dyn Losses,
    corpus: &Corpus,
    starts: &[u64],
    block: usize,
    is_stopped: impl Fn() -> bool,
) -> Result<Option<Evaluation>, TchError> {
    let mut sum = 0.0;
    for starts in starts.chunks((PASS_TOKENS / block).max(1)) {
        if is_stopped() {
            return Ok(None);
        }
        let batch = corpus.batch(starts, block, model.device())?;
        sum += model.loss_sum(&batch)?;
    }
    let bytes = (starts.len() * block) as u64;
    let loss = sum / bytes as f64;
    Ok(Some(Evaluation { loss, bits_per_byte: loss / LN_2, bytes }))
}
