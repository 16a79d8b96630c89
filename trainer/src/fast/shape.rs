//! The sizes that all parts of the fast path share.

/// The sizes of a model at work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) width: usize,
    pub(super) neurons: usize,
    pub(super) vocabulary: usize,
    pub(super) tokens: usize,
}
