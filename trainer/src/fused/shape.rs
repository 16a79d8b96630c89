//! The sizes that all parts of the fused path share.

/// The sizes of a model and a batch at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) heads: i64,
    pub(crate) width: i64,
    pub(crate) neurons: i64,
    pub(crate) vocabulary: i64,
    pub(crate) sequences: i64,
    pub(crate) tokens: i64,
}

impl Shape {
    /// Rows: tokens of all sequences.
    pub(crate) fn rows(&self) -> i64 {
        self.sequences * self.tokens
    }
}
