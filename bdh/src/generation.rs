//! An answer, byte by byte.

use std::iter::FusedIterator;

use crate::{
    engine::Engine,
    sampling::SamplingParams,
    session::Session,
    stop::{StopFilter, StopStrings},
};

/// New bytes after a prompt, each made when it is asked for.
#[derive(Clone, Debug)]
pub struct Generation {
    session: Session,
    filter: StopFilter,
    left_bytes: usize,
    end: Option<End>,
}

/// Why no more bytes are made, where it is not their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stopped,
    Broken,
}

impl Generation {
    /// Feeds `prompt` to `engine`, which takes time for each of its bytes, and is then ready to give up to `max_bytes`
    /// new bytes.
    ///
    /// The engine may be fresh or have seen bytes before; then the answer goes on from there. An empty prompt to a
    /// fresh engine counts as one line feed, byte 10, which is not part of the answer. The repetition penalty knows of
    /// the prompt, and not of what the engine has seen before.
    pub fn new(engine: Engine, prompt: &[u8], params: &SamplingParams, max_bytes: usize) -> Self {
        Self::resume(Session::new(engine, params), prompt, max_bytes)
    }

    /// The same from where `session` stands, by its own sampler: with an empty prompt it goes on as if it had never
    /// been interrupted.
    pub fn resume(mut session: Session, prompt: &[u8], max_bytes: usize) -> Self {
        session.feed(prompt);
        let filter = StopFilter::new(StopStrings::default());
        Self { session, filter, left_bytes: max_bytes, end: None }
    }

    /// Where the answer stands: after the last byte made, which includes bytes that are held back for a stop string
    /// and the stop string itself.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Ends the answer here, to be gone on with or put away.
    pub fn into_session(self) -> Session {
        self.session
    }

    /// The same answer, up to where one of `stops` is whole in it; the stop string itself is not given. Bytes that
    /// could be its start are held back until they cannot. To be called before the first byte is asked for; the prompt
    /// is not searched.
    #[must_use]
    pub fn with_stops(self, stops: StopStrings) -> Self {
        Self { filter: StopFilter::new(stops), ..self }
    }

    /// Whether the answer ended early because the model's logits are not finite numbers: its weights are useless.
    pub fn is_broken(&self) -> bool {
        self.end == Some(End::Broken)
    }

    /// Whether the answer ended at a stop string.
    pub fn is_stopped(&self) -> bool {
        self.end == Some(End::Stopped)
    }

    /// Makes one more byte; what may go is then in the filter.
    fn make(&mut self) {
        self.left_bytes -= 1;
        self.end = match self.session.next_byte() {
            None => Some(End::Broken),
            Some(byte) => self.filter.push(byte).then_some(End::Stopped),
        };
        if self.end.is_some() {
            self.left_bytes = 0;
        }
        if self.left_bytes == 0 {
            self.filter.release_all();
        }
    }
}

impl Iterator for Generation {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        loop {
            if let Some(byte) = self.filter.pop() {
                return Some(byte);
            }
            if self.left_bytes == 0 {
                return None;
            }
            self.make();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left_bytes.saturating_add(self.filter.len())))
    }
}

impl FusedIterator for Generation {}
