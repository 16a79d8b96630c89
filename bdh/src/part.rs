//! The newest bytes of a stream, kept as they are, and when they are kept otherwise.

use crate::model::TILE;

/// Longest window chunk that is kept as a part, and so the most bytes in one: at the usual widths, to read a sum is
/// less work than to read a longer part.
pub(crate) const PART_BYTES_MAX: usize = 256;
/// Bytes in a part that will be folded into a sum.
const FOLDED_BYTES: u32 = 128;

/// When parts end and windows turn: a pure function of the position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    /// Bytes in one chunk of the window, if there is one.
    pub(crate) chunk_bytes: Option<u32>,
    pub(crate) part_bytes: u32,
}

impl Course {
    pub(crate) fn new(chunk_bytes: Option<u32>) -> Self {
        let part_bytes = chunk_bytes.filter(|bytes| *bytes as usize <= PART_BYTES_MAX);
        Self { chunk_bytes, part_bytes: part_bytes.unwrap_or(FOLDED_BYTES) }
    }

    /// Whether the chunk before is kept as a part.
    pub(crate) fn keeps_parts(self) -> bool {
        self.chunk_bytes == Some(self.part_bytes)
    }

    /// Bytes of the chunk that came before `position`.
    pub(crate) fn into_chunk(self, position: u64) -> u64 {
        self.chunk_bytes.map_or(position, |bytes| position % u64::from(bytes))
    }

    /// Bytes of the part that came before `position`.
    pub(crate) fn into_part(self, position: u64) -> usize {
        (self.into_chunk(position) % u64::from(self.part_bytes)) as usize
    }

    /// How many bytes from `position` on belong to the same part.
    pub(crate) fn left_in_part(self, position: u64) -> usize {
        let part = self.part_bytes as usize - self.into_part(position);
        self.chunk_bytes.map_or(part, |bytes| {
            part.min((u64::from(bytes) - self.into_chunk(position)).try_into().unwrap_or(usize::MAX))
        })
    }

    /// Whether parts of the current chunk have been folded already.
    pub(crate) fn has_folded(self, position: u64) -> bool {
        self.into_chunk(position) >= u64::from(self.part_bytes)
    }

    /// Whether there is a chunk before that of `position`.
    pub(crate) fn has_previous(self, position: u64) -> bool {
        self.chunk_bytes.is_some_and(|bytes| position >= u64::from(bytes))
    }
}

/// The turned neurons and the inputs of up to so many bytes.
#[derive(Clone, Debug)]
pub(crate) struct Part<N> {
    /// For each layer, each head, each tile of bytes: M rows, a neuron each, with a column for each byte. Zero where
    /// there is no byte yet.
    pub(crate) keys: Vec<[N; TILE]>,
    /// For each layer, each tile of the width: a row for each byte.
    pub(crate) values: Vec<[f32; TILE]>,
}
