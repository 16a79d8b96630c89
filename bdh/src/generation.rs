//! An answer, byte by byte.

use std::iter::FusedIterator;

use crate::{
    engine::Engine,
    sampling::{Sampler, SamplingParams},
};

/// What an empty prompt stands for: the start of a line.
const EMPTY_PROMPT: &[u8] = b"\n";

/// New bytes after a prompt, each made when it is asked for.
#[derive(Clone, Debug)]
pub struct Generation {
    engine: Engine,
    sampler: Sampler,
    /// The byte given last, which the engine has not been fed yet: it is handed out before the next is begun.
    pending: Option<u8>,
    left_bytes: usize,
    broken: bool,
}

impl Generation {
    /// Feeds `prompt` to `engine`, which takes time for each of its bytes, and is then ready to give up to `max_bytes`
    /// new bytes.
    ///
    /// The engine may be fresh or have seen bytes before; then the answer goes on from there. An empty prompt to a
    /// fresh engine counts as one line feed, byte 10, which is not part of the answer.
    pub fn new(mut engine: Engine, prompt: &[u8], params: &SamplingParams, max_bytes: usize) -> Self {
        let fresh = engine.position() == 0;
        engine.prefill(if fresh && prompt.is_empty() { EMPTY_PROMPT } else { prompt });
        Self { engine, sampler: Sampler::new(params), pending: None, left_bytes: max_bytes, broken: false }
    }

    /// Whether the answer ended early because the model's logits are not finite numbers: its weights are useless.
    pub fn is_broken(&self) -> bool {
        self.broken
    }
}

impl Iterator for Generation {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        if self.left_bytes == 0 {
            return None;
        }
        if let Some(byte) = self.pending.take() {
            self.engine.step(byte);
        }
        let byte = self.sampler.choose(self.engine.logits());
        self.broken = byte.is_none();
        self.left_bytes = if self.broken { 0 } else { self.left_bytes - 1 };
        self.pending = byte;
        byte
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left_bytes))
    }
}

impl FusedIterator for Generation {}
