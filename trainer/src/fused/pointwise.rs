//! The pointwise operations: what a layer computes between its matrix products.

use std::fmt;

use tch::{TchError, Tensor};

use super::shape::Shape;
use crate::dropout::Dropout;

/// What a norm gave, and the reciprocal deviation of each row before it.
#[derive(Debug)]
pub(crate) struct Normed {
    pub(crate) y: Tensor,
    pub(crate) reciprocals: Tensor,
}

/// The residual stream after a layer, N x D.
#[derive(Debug)]
pub(crate) struct Residual {
    /// What the decoder gave, normed.
    pub(crate) y: Normed,
    /// The stream itself, of the weights' kind.
    pub(crate) next: Normed,
    /// The same as an operand.
    pub(crate) operand: Tensor,
}

/// What is dropped in a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drops {
    pub(crate) rule: Option<Dropout>,
    pub(crate) layer: usize,
}

/// The pointwise operations. What is taken by value is used up: its memory is that of a result.
///
/// q and v are what [`PointwiseOps::rectified`] gave.
pub(crate) trait PointwiseOps: fmt::Debug {
    /// relu(x); or x, where all that reads it below rectifies it anyway, which saves a pass.
    fn rectified(&self, x: Tensor) -> Result<Tensor, TchError>;

    /// rope(q), H x N x M.
    fn rope(&self, shape: &Shape, q: &Tensor) -> Result<Tensor, TchError>;

    /// The derivative before q's relu, of `dq`, which comes by the gate, and `dr`, which comes by the rope.
    fn rope_backward(&self, shape: &Shape, q: &Tensor, dr: Tensor, dq: Tensor) -> Result<Tensor, TchError>;

    /// g = dropout(q v), and what was kept of it, where that is not made again on the way back.
    fn gate(
        &self,
        shape: &Shape,
        q: &Tensor,
        v: &Tensor,
        drops: Drops,
    ) -> Result<(Tensor, Option<Tensor>), TchError>;

    /// From q, v, the mask of [`PointwiseOps::gate`] and g's derivative: g again, the derivative by q, and that before v's relu.
    fn gate_backward(
        &self,
        shape: &Shape,
        q: &Tensor,
        v: Tensor,
        dg: Tensor,
        mask: Option<&Tensor>,
        drops: Drops,
    ) -> Result<[Tensor; 3], TchError>;

    /// norm(x) over the last dimension, in x's kind.
    fn layer_norm(&self, x: &Tensor) -> Result<Normed, TchError>;

    /// The derivative before a norm.
    fn layer_norm_backward(&self, normed: &Normed, dy: Tensor) -> Result<Tensor, TchError>;

    /// norm(the rows of `table` at `bytes`), N x D of the weights' kind, and the same as an operand.
    fn embed(
        &self,
        table: &Tensor,
        bytes: &Tensor,
        operands: tch::Kind,
    ) -> Result<(Normed, Tensor), TchError>;

    /// The derivative by the rows of the table.
    fn embed_backward(&self, x: &Normed, dx: Tensor) -> Result<Tensor, TchError>;

    /// norm(x + norm(the sum of `parts` over heads)).
    fn residual(&self, x: &Tensor, parts: &Tensor) -> Result<Residual, TchError>;

    /// From the derivative by the stream after a layer: that before it, and that by what the decoder gave, as an operand.
    fn residual_backward(&self, residual: &Residual, dx: Tensor) -> Result<(Tensor, Tensor), TchError>;

    /// dx, N x D, and the sums over heads of two more derivatives by the same, H x N x D.
    fn add_heads(&self, dx: Tensor, parts: [&Tensor; 2]) -> Result<Tensor, TchError>;

    /// The loss of each target in nats, N, and the logits' derivatives, N x V, weighed by `weight`.
    fn cross_entropy(
        &self,
        logits: Tensor,
        targets: &Tensor,
        weight: f64,
    ) -> Result<(Tensor, Tensor), TchError>;

    /// `sum` += a b for each matrix, in the weights' kind; a sum that is not there yet is 0.
    fn add_product(&self, sum: &mut Option<Tensor>, a: &Tensor, b: &Tensor) -> Result<(), TchError>;

    /// What stands below the diagonal of each T x T matrix.
    fn below_diagonal(&self, scores: Tensor) -> Result<Tensor, TchError>;

    /// e + e^T for each T x T matrix, where e is what stands below its diagonal.
    fn mirror(&self, d: Tensor) -> Result<Tensor, TchError>;
}
