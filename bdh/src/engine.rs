//! The recurrent form of BDH: one byte in, logits for the next byte out, in constant time and memory.
//!
//! With S_t = sum over s < t of r_s x_s^T for each layer and head (M x D), attention is a_t = norm(r_t^T S_t): S is
//! read, and then takes in the token that has read it.

use std::{collections::TryReserveError, fmt, io, sync::Arc};

use crate::{
    forward::{BLOCK_BYTES, Forward, ReadOut, Scratch, Stream},
    model::{Layers, LayersIn, Model},
    multiversion,
    number::Number,
    part::Course,
    state::{self, State, StateIn},
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
    /// Bytes in one chunk of [`Window::Default`], for a model that was trained on blocks of `trained_block`.
    pub fn default_chunk_bytes(trained_block: u32) -> u32 {
        (trained_block / 2).max(1)
    }

    /// Bytes in one chunk, if there is a window.
    fn chunk_bytes(self, model: &Model) -> Option<u32> {
        match self {
            Self::Default => model.trained_block().map(Self::default_chunk_bytes),
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
        "this machine lacks the memory for the model's state; choose another node, bf16, or a smaller model"
    )]
    OutOfMemory(#[source] TryReserveError),
}

/// One stream of bytes through a model: the state after the bytes so far. A clone goes its own way from there.
///
/// The engine speaks bytes. If the vocabulary is larger than 256, the other tokens are never fed.
#[derive(Clone)]
pub struct Engine {
    model: Arc<Model>,
    position: u64,
    course: Course,
    state: StateIn,
    scratch: Scratch,
    /// For the next token; V numbers and the filling of the last tile.
    logits: Vec<f32>,
}

impl Engine {
    /// An engine that has seen nothing yet. Its state is kept in the precision of the model.
    pub fn new(model: Arc<Model>, window: Window) -> Result<Self, EngineError> {
        let chunk_bytes = window.chunk_bytes(&model);
        Self::at(model, chunk_bytes, 0)
    }

    /// An engine that stands at `position`; its numbers are still to be set.
    pub(crate) fn at(
        model: Arc<Model>,
        chunk_bytes: Option<u32>,
        position: u64,
    ) -> Result<Self, EngineError> {
        let course = Course::new(chunk_bytes);
        let state = StateIn::new(&model, course).map_err(EngineError::OutOfMemory)?;
        let scratch = Scratch::new(&model);
        let logits = vec![0.0; model.lm_head.padded_columns()];
        Ok(Self { model, position, course, state, scratch, logits })
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Bytes fed so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes in one chunk of the window, if there is one.
    pub fn chunk_bytes(&self) -> Option<u32> {
        self.course.chunk_bytes
    }

    /// Memory that the state takes, in bytes: the same from the first byte to the last.
    pub fn state_bytes(&self) -> usize {
        self.state.bytes()
    }

    /// The share of neurons that were active for the bytes that this engine has taken through the layers: those fed to
    /// it alone, and all of a batch in which it stood first. Not a number where there were none.
    pub fn active_share(&self) -> f64 {
        let [active, all] = self.scratch.activity;
        active as f64 / all as f64
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
            let block = self.feed_block(rest);
            rest = &rest[block..];
            if rest.is_empty() {
                read_out(&self.model, self.scratch.x(block - 1), &mut self.logits);
            }
        }
        self.logits()
    }

    /// The same, and hands the logits after each byte to `visit`.
    pub(crate) fn prefill_and_visit(&mut self, bytes: &[u8], mut visit: impl FnMut(&[f32])) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let block = self.feed_block(rest);
            rest = &rest[block..];
            for index in 0..block {
                read_out(&self.model, self.scratch.x(index), &mut self.logits);
                visit(self.logits());
            }
        }
    }

    /// Feeds as many of `bytes`, which are not empty, as may go together, and returns how many.
    fn feed_block(&mut self, bytes: &[u8]) -> usize {
        let block = self.course.left_in_part(self.position).min(BLOCK_BYTES).min(bytes.len());
        run(&mut [(self, &bytes[..block])]);
        block
    }
}

/// Feeds each engine its byte, all in one pass over the weights, and leaves in each the logits for its next. The same
/// as [`Engine::step`] for each alone, to the bit.
///
/// # Panics
/// If the engines are not all of one model.
pub fn step_all(steps: &mut [(&mut Engine, u8)]) {
    for steps in steps.chunks_mut(BLOCK_BYTES) {
        let mut blocks: Vec<(&mut Engine, &[u8])> = Vec::with_capacity(steps.len());
        for (engine, byte) in steps {
            blocks.push((engine, std::slice::from_ref(byte)));
        }
        run(&mut blocks);
        let mut blocks = blocks.into_iter().map(|(engine, _)| engine);
        if let Some(first) = blocks.next() {
            read_out(&first.model, first.scratch.x(0), &mut first.logits);
            for (index, engine) in blocks.enumerate() {
                read_out(&engine.model, first.scratch.x(index + 1), &mut engine.logits);
            }
        }
    }
}

/// Takes each engine's bytes, together at most [`BLOCK_BYTES`], through the layers. Their residual streams are then in
/// the first engine's scratch.
fn run(blocks: &mut [(&mut Engine, &[u8])]) {
    let Some(((first, _), others)) = blocks.split_first() else { return };
    let model = first.model.clone();
    assert!(
        others.iter().all(|(engine, _)| Arc::ptr_eq(&engine.model, &model)),
        "engines that step together are of one model"
    );
    for (engine, _) in &mut *blocks {
        engine.state.end_full_part(&model, engine.course, engine.position);
    }
    match &model.layers {
        LayersIn::F32(layers) => run_in(&model, layers, blocks, StateIn::f32),
        LayersIn::Bf16(layers) => run_in(&model, layers, blocks, StateIn::bf16),
    }
    for (engine, bytes) in blocks {
        engine.position += bytes.len() as u64;
    }
}

fn run_in<N: Number>(
    model: &Model,
    layers: &Layers<N>,
    blocks: &mut [(&mut Engine, &[u8])],
    state_in: fn(&mut StateIn) -> &mut State<N>,
) {
    let mut scratch = None;
    let mut streams = Vec::with_capacity(blocks.len());
    for (engine, bytes) in blocks {
        let Engine { state, scratch: own_scratch, position, course, .. } = &mut **engine;
        scratch.get_or_insert(own_scratch);
        streams.push(Stream { state: state_in(state), course: *course, position: *position, bytes });
    }
    if let Some(scratch) = scratch {
        multiversion::run(Forward { model, layers, streams: &mut streams, scratch });
    }
}

/// logits = x @ lm_head
fn read_out(model: &Model, x: &[f32], logits: &mut [f32]) {
    multiversion::run(ReadOut { model, x, logits });
}

/// Where it stands, without its millions of numbers.
impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("model", &self.model.identity())
            .field("precision", &self.model.precision())
            .field("position", &self.position)
            .field("chunk_bytes", &self.course.chunk_bytes)
            .finish_non_exhaustive()
    }
}

/// What a session file keeps of an engine beside where it stands.
impl Engine {
    /// How many bytes the numbers have.
    pub(crate) fn numbers_bytes(&self) -> usize {
        size_of_val(self.logits()) + self.state.bytes()
    }

    pub(crate) fn write_numbers(&self, write: &mut state::Write) -> io::Result<()> {
        state::write_numbers(self.logits(), write)?;
        self.state.write(write)
    }

    pub(crate) fn read_numbers(&mut self, read: &mut state::Read) -> io::Result<()> {
        let vocabulary = self.model.config().vocabulary();
        state::read_numbers(&mut self.logits[..vocabulary], read)?;
        self.state.read(read)
    }
}
