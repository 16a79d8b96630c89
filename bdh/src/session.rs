//! A stream of bytes that is read and written in turn, and can be put away in between.

use crate::{
    engine::Engine,
    sampling::{Sampler, SamplingParams},
};

/// What an empty prompt stands for: the start of a line.
pub const EMPTY_PROMPT: &[u8] = b"\n";

/// An engine, the sampler that chooses its bytes, and the byte chosen last, which the engine has not been fed yet: it
/// can be handed out before the next is begun.
///
/// A clone is a fork: it goes its own way from there. [`Session::save`] puts it into a file, from which
/// [`Session::load`] takes it up again, with the same bytes to come.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) engine: Engine,
    pub(crate) sampler: Sampler,
    pub(crate) pending: Option<u8>,
}

impl Session {
    /// Bytes of `engine`, fresh or not, chosen by `params`.
    pub fn new(engine: Engine, params: &SamplingParams) -> Self {
        Self { engine, sampler: Sampler::new(params), pending: None }
    }

    /// The same session, choosing by other `params` from here on: from the first draw of their seed, and with the
    /// repetition penalty on the bytes seen so far.
    #[must_use]
    pub fn with_params(self, params: &SamplingParams) -> Self {
        Self { sampler: self.sampler.with_params(params), ..self }
    }

    /// The engine, which has not seen [`Session::pending`] yet.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The byte chosen last, if nothing has been fed since.
    pub fn pending(&self) -> Option<u8> {
        self.pending
    }

    /// Bytes read and written so far.
    pub fn position(&self) -> u64 {
        self.engine.position() + u64::from(self.pending.is_some())
    }

    /// Reads `prompt`. An empty one changes nothing, except that a session without any byte yet reads a line feed,
    /// byte 10, which the repetition penalty does not know of.
    pub fn feed(&mut self, prompt: &[u8]) {
        if self.position() == 0 && prompt.is_empty() {
            self.engine.prefill(EMPTY_PROMPT);
        }
        self.read(prompt);
        self.sampler.see(prompt);
    }

    /// Reads the start of an answer that another session with the same parameters made from here on: what comes next is
    /// what would have come next there.
    pub fn follow(&mut self, answer: &[u8]) {
        self.read(answer);
        self.sampler.follow(answer);
    }

    fn read(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.pending.take() {
            Some(pending) => self.engine.prefill(&[&[pending], bytes].concat()),
            None => self.engine.prefill(bytes),
        };
    }

    /// Chooses the next byte. None if the model's logits are not finite numbers: its weights are useless.
    pub fn next_byte(&mut self) -> Option<u8> {
        if let Some(byte) = self.pending.take() {
            self.engine.step(byte);
        }
        self.pending = self.sampler.choose(self.engine.logits());
        self.pending
    }
}
