//! The recurrent form of BDH: one byte in, logits for the next byte out, in constant time and memory.
//!
//! With S_t = sum over s < t of r_s x_s^T for each layer and head (M x D), attention is a_t = norm(r_t^T S_t): S is
//! read, and then takes in the token that has read it.

use std::{collections::TryReserveError, sync::Arc};

use crate::{
    forward::{BLOCK_BYTES, Scratch, States, forward, read_out},
    model::Model,
};

/// How far back a byte can see.
///
/// A model sees positions up to its trained block while it learns, and its state only ever grew that far; when more
/// is summed up, its answers degrade. A window of two chunks keeps the states of the chunk before and of the current
/// chunk: a byte then sees at least one whole chunk, at most two, itself included, of what came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Window {
    /// Chunks of half the trained block; no window where the checkpoint does not name its block.
    #[default]
    Default,
    /// Everything since the start.
    None,
    /// Two chunks of so many bytes each; 0 counts as 1.
    Chunks {
        /// Bytes in one chunk.
        bytes: u32,
    },
}

impl Window {
    /// Bytes in one chunk, if there is a window.
    fn chunk_bytes(self, model: &Model) -> Option<u32> {
        match self {
            Self::Default => model.trained_block().map(|block| block / 2),
            Self::None => None,
            Self::Chunks { bytes } => Some(bytes),
        }
        .map(|bytes| bytes.max(1))
    }
}

/// Why an engine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The state does not fit into memory.
    #[error(
        "the state of this model takes {bytes} bytes, and this machine does not give them; choose another node"
    )]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
        /// The allocator's answer.
        source: TryReserveError,
    },
}

/// One stream of bytes through a model: the state after the bytes so far. A clone goes its own way from there.
///
/// The engine speaks bytes. If the vocabulary is larger than 256, the other tokens are never fed.
#[derive(Clone, Debug)]
pub struct Engine {
    model: Arc<Model>,
    /// Bytes so far.
    position: u64,
    chunk_bytes: Option<u32>,
    /// S of all layers and heads: L * H * M rows. With a window, of the current chunk alone.
    current: Vec<f32>,
    /// S of the chunk before; empty without a window.
    previous: Vec<f32>,
    scratch: Scratch,
    /// For the next token; V numbers and the filling of the last tile.
    logits: Vec<f32>,
}

impl Engine {
    /// An engine that has seen nothing yet.
    pub fn new(model: Arc<Model>, window: Window) -> Result<Self, EngineError> {
        let config = model.config();
        let state_len = config.layers() * config.heads() * config.neurons_per_head() * config.width();
        let chunk_bytes = window.chunk_bytes(&model);
        Ok(Self {
            position: 0,
            chunk_bytes,
            current: zeros(state_len)?,
            previous: zeros(if chunk_bytes.is_some() { state_len } else { 0 })?,
            scratch: Scratch::new(&model),
            logits: vec![0.0; model.lm_head.padded_columns()],
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Bytes fed so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes in one chunk of the window, if there is one.
    pub fn chunk_bytes(&self) -> Option<u32> {
        self.chunk_bytes
    }

    /// Memory that the state takes, in bytes: the same from the first byte to the last.
    pub fn state_bytes(&self) -> usize {
        (self.current.len() + self.previous.len()) * size_of::<f32>()
    }

    /// Logits for the token after the last byte fed, V numbers; all zero where nothing was fed.
    pub fn logits(&self) -> &[f32] {
        &self.logits[..self.model.config().vocabulary()]
    }

    /// Feeds one byte; returns the logits for the next.
    pub fn step(&mut self, byte: u8) -> &[f32] {
        self.prefill(&[byte])
    }

    /// Feeds all `bytes`; returns the logits for the byte after the last. The same as a step for each, to the bit,
    /// but faster: bytes go through each layer in blocks that read the weights once.
    pub fn prefill(&mut self, bytes: &[u8]) -> &[f32] {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (block, after) = rest.split_at(rest.len().min(self.turn_chunk()));
            let previous = self.has_previous().then_some(&*self.previous);
            let states = States { previous, current: &mut self.current };
            forward(&self.model, states, &mut self.scratch, self.position, block);
            self.position += block.len() as u64;
            rest = after;
            if rest.is_empty() {
                read_out(&self.model, &self.scratch, block.len() - 1, &mut self.logits);
            }
        }
        self.logits()
    }

    /// Whether there is a chunk before the current one: not before the first turn.
    fn has_previous(&self) -> bool {
        self.chunk_bytes.is_some_and(|chunk_bytes| self.position >= u64::from(chunk_bytes))
    }

    /// At the end of a chunk, makes it the previous one. Returns how many bytes may then be fed together.
    fn turn_chunk(&mut self) -> usize {
        let Some(chunk_bytes) = self.chunk_bytes.map(u64::from) else {
            return BLOCK_BYTES;
        };
        let into_chunk = self.position % chunk_bytes;
        if into_chunk == 0 && self.position > 0 {
            std::mem::swap(&mut self.current, &mut self.previous);
            self.current.fill(0.0);
        }
        (chunk_bytes - into_chunk).min(BLOCK_BYTES as u64) as usize
    }
}

/// What a session file keeps of an engine.
impl Engine {
    /// An engine that stands at `position`; its numbers are still to be set.
    pub(crate) fn at(
        model: Arc<Model>,
        chunk_bytes: Option<u32>,
        position: u64,
    ) -> Result<Self, EngineError> {
        let window = chunk_bytes.map_or(Window::None, |bytes| Window::Chunks { bytes });
        Ok(Self { position, ..Self::new(model, window)? })
    }

    /// The numbers that are not zero by themselves.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = &[f32]> {
        let logits = &self.logits[..self.model.config().vocabulary()];
        let previous = self.has_previous().then_some(&*self.previous);
        [logits, &self.current].into_iter().chain(previous)
    }

    /// The same, to be set.
    pub(crate) fn numbers_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        let previous = self.has_previous().then_some(&mut *self.previous);
        let logits = &mut self.logits[..self.model.config().vocabulary()];
        [logits, &mut self.current].into_iter().chain(previous)
    }
}

/// Zeros for a state, or the news that there is no room for them.
fn zeros(len: usize) -> Result<Vec<f32>, EngineError> {
    let mut state = Vec::new();
    state
        .try_reserve_exact(len)
        .map_err(|source| EngineError::OutOfMemory { bytes: len * size_of::<f32>(), source })?;
    state.resize(len, 0.0);
    Ok(state)
}
