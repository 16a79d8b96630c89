//! The loss of a model on text that it does not learn from.

use hatchery_common::trainer::PositionLoss;
use tch::{Device, Kind, TchError, no_grad_guard};

use crate::{
    data::{Batch, Corpus},
    model::Model,
};

/// Tokens in one pass, unless a single window has more: enough to keep a CPU busy, little enough for any memory.
const PASS_TOKENS: usize = 2048;

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// The same by position in the window, in ranges that double.
    pub by_position: Vec<PositionLoss>,
    /// Bytes that were predicted.
    pub bytes: u64,
}

/// Whoever can say how well a text is foretold.
pub trait Losses {
    /// Where batches are wanted.
    fn device(&self) -> Device;
    /// The cross-entropy in nats of each target of `batch`, sequence after sequence; nothing is dropped.
    fn losses(&mut self, batch: &Batch) -> Result<Vec<f64>, TchError>;
}

impl Losses for &Model {
    fn device(&self) -> Device {
        Model::device(self)
    }

    fn losses(&mut self, batch: &Batch) -> Result<Vec<f64>, TchError> {
        let _guard = no_grad_guard();
        let losses = Model::losses(self, &batch.tokens, &batch.targets)?;
        // To f64 on the CPU, because an Apple GPU has none.
        Vec::try_from(losses.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)
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
    let mut sums = vec![0.0; block];
    for starts in starts.chunks((PASS_TOKENS / block).max(1)) {
        if is_stopped() {
            return Ok(None);
        }
        let batch = corpus.batch(starts, block, model.device())?;
        for window in model.losses(&batch)?.chunks_exact(block) {
            sums.iter_mut().zip(window).for_each(|(sum, loss)| *sum += loss);
        }
    }
    let bytes = (starts.len() * block) as u64;
    let loss = sums.iter().sum::<f64>() / bytes as f64;
    Ok(Some(Evaluation { loss, by_position: by_position(&sums, starts.len()), bytes }))
}

/// Means over positions 1, 2, 3 to 4, 5 to 8 and so on, from the sums over `windows` windows at each position.
fn by_position(sums: &[f64], windows: usize) -> Vec<PositionLoss> {
    let ends = std::iter::successors(Some(1), |end| Some(2 * end));
    let firsts = ends.clone().map(|end| end / 2 + 1).take_while(|first| *first <= sums.len());
    let range = |(first, end): (usize, usize)| {
        let part = &sums[first - 1..end.min(sums.len())];
        let loss = part.iter().sum::<f64>() / (part.len() * windows) as f64;
        PositionLoss { from: first as u32, to: (first - 1 + part.len()) as u32, loss }
    };
    firsts.zip(ends).map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_ranges_that_double_and_end_with_the_window() {
        // Position n has the loss n in each of two windows.
        let sums: Vec<f64> = (1..=10).map(|position| 2.0 * f64::from(position)).collect();
        let found = by_position(&sums, 2);
        let expected = [(1, 1, 1.0), (2, 2, 2.0), (3, 4, 3.5), (5, 8, 6.5), (9, 10, 9.5)];
        assert_eq!(found, expected.map(|(from, to, loss)| PositionLoss { from, to, loss }));
    }
}
