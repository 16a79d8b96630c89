//! Strings that end an answer: where they are found in it.

use std::collections::VecDeque;

pub use hatchery_common::generate::StopStrings;

/// Bytes on their way out, held back while they could be the start of a stop string.
#[derive(Clone, Debug)]
pub struct StopFilter {
    stops: StopStrings,
    bytes: VecDeque<u8>,
    /// How many of `bytes`, from the first on, may go.
    released: usize,
}

impl StopFilter {
    pub fn new(stops: StopStrings) -> Self {
        Self { stops, bytes: VecDeque::new(), released: 0 }
    }

    /// Takes a byte in. Whether a stop string is now whole: it is dropped, and what came before it may go.
    pub fn push(&mut self, byte: u8) -> bool {
        self.bytes.push_back(byte);
        let strings = || self.stops.iter();
        // Of two that end here the longer one is dropped.
        let whole = strings().filter(|stop| self.ends_in(stop)).map(<[u8]>::len).max();
        if let Some(length) = whole {
            self.bytes.truncate(self.bytes.len() - length);
            self.release_all();
            return true;
        }
        let begun =
            strings().filter_map(|stop| (1..stop.len()).rev().find(|len| self.ends_in(&stop[..*len])));
        self.released = self.bytes.len() - begun.max().unwrap_or(0);
        false
    }

    /// No more bytes will come in: all that are here may go.
    pub fn release_all(&mut self) {
        self.released = self.bytes.len();
    }

    /// The next byte that may go.
    pub fn pop(&mut self) -> Option<u8> {
        self.released = self.released.checked_sub(1)?;
        self.bytes.pop_front()
    }

    /// Bytes here, held back or not.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn ends_in(&self, string: &[u8]) -> bool {
        string.len() <= self.bytes.len() && string.iter().rev().eq(self.bytes.iter().rev().take(string.len()))
    }
}
