//! The forward pass: matrix products, and pointwise operations between them.
#![allow(clippy::many_single_char_names, reason = "the paper's letters say more than words would")]

use tch::{TchError, Tensor};

use super::{
    Fused,
    pointwise::{Drops, Normed, Residual},
    shape::Shape,
};
use crate::{data::Batch, dropout::Dropout, weights::Weights};

/// The weights as operands of products.
#[derive(Debug)]
pub(super) struct Operands {
    /// H x D x M.
    pub(super) encoder: Tensor,
    /// H x D x M.
    pub(super) encoder_v: Tensor,
    /// H x M x D.
    pub(super) decoder: Tensor,
    /// D x V.
    pub(super) lm_head: Tensor,
}

impl Operands {
    pub(super) fn new(fused: &Fused, weights: &Weights) -> Result<Self, TchError> {
        let operand = |weight: &Tensor| weight.f_detach()?.f_to_kind(fused.operands);
        let [heads, neurons, width] =
            [fused.config.heads(), fused.config.neurons_per_head(), fused.config.width()].map(|n| n as i64);
        Ok(Self {
            encoder: operand(&weights.encoder)?,
            encoder_v: operand(&weights.encoder_v)?,
            decoder: operand(&weights.decoder)?.f_view_([heads, neurons, width])?,
            lm_head: operand(&weights.lm_head)?,
        })
    }
}

/// What a layer keeps for the way back.
#[derive(Debug)]
pub(super) struct Layer {
    /// The residual stream before it, as an operand, H x N x D: the same for each head.
    pub(super) x: Tensor,
    /// Neurons, rectified at the latest where they are read, H x N x M.
    pub(super) q: Tensor,
    pub(super) v: Tensor,
    /// What was kept of the gated neurons, where that is not made again.
    pub(super) mask: Option<Tensor>,
    /// H*B x T x T: of the token in the column for that in the row, which is after it; else 0.
    pub(super) scores: Tensor,
    /// What attention read, H x N x D.
    pub(super) a: Normed,
    pub(super) residual: Residual,
}

/// All that the way there leaves.
#[derive(Debug)]
pub(super) struct Kept {
    /// The residual stream before the first layer.
    pub(super) start: Normed,
    pub(super) layers: Vec<Layer>,
    /// N x V.
    pub(super) logits: Tensor,
}

/// One pass there and back.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub(super) fused: &'a Fused,
    pub(super) shape: Shape,
    pub(super) dropout: Option<Dropout>,
    pub(super) operands: Operands,
}

impl Pass<'_> {
    pub(super) fn forward(&self, weights: &Weights, batch: &Batch) -> Result<Kept, TchError> {
        let (shape, pointwise) = (&self.shape, &self.fused.pointwise);
        let bytes = batch.tokens.f_flatten(0, -1)?;
        let (start, mut x) = pointwise.embed(&weights.embed.f_detach()?, &bytes, self.fused.operands)?;
        let mut layers: Vec<Layer> = Vec::with_capacity(shape.layers);
        for layer in 0..shape.layers {
            // q = relu(x E), r = rope(q), scores = r r^T
            let x_of_heads = self.of_all_heads(&x)?.f_contiguous()?;
            let q = pointwise.rectified(x_of_heads.f_bmm(&self.operands.encoder)?)?;
            let r = self.by_sequence(&pointwise.rope(shape, &q)?)?;
            let scores = pointwise.below_diagonal(r.f_bmm(&r.f_transpose(1, 2)?)?)?;
            drop(r);
            // a = norm(scores x)
            let read = scores.f_bmm(&self.by_sequence(&x_of_heads)?)?;
            let a = pointwise.layer_norm(&read.f_view_([shape.heads, shape.rows(), shape.width])?)?;
            // v = relu(a E_v), g = dropout(q v), y = g D
            let v = pointwise.rectified(a.y.f_bmm(&self.operands.encoder_v)?)?;
            let (g, mask) = pointwise.gate(shape, &q, &v, Drops { rule: self.dropout, layer })?;
            let parts = g.f_bmm(&self.operands.decoder)?;
            drop(g);
            // x = norm(x + norm(y))
            let before = layers.last().map_or(&start.y, |layer| &layer.residual.next.y);
            let residual = pointwise.residual(before, &parts)?;
            let next = residual.operand.shallow_clone();
            layers.push(Layer { x: x_of_heads, q, v, mask, scores, a, residual });
            x = next;
        }
        let logits = x.f_matmul(&self.operands.lm_head)?;
        Ok(Kept { start, layers, logits })
    }

    /// N x D as H x N x D, the same for each head.
    pub(super) fn of_all_heads(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let Shape { heads, width, .. } = self.shape;
        x.f_unsqueeze(0)?.f_expand([heads, self.shape.rows(), width], false)
    }

    /// H x N x K as H*B x T x K.
    pub(super) fn by_sequence(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let Shape { heads, sequences, tokens, .. } = self.shape;
        x.f_view_([heads * sequences, tokens, -1])
    }

    /// Zeros of the weights' kind in the shape of a weight, for its gradient.
    pub(super) fn room_for(&self, size: &[i64]) -> Result<Tensor, TchError> {
        Tensor::f_zeros(size, (self.fused.kind, self.fused.device))
    }
}
