//! The way back: the gradients, by hand.
#![allow(clippy::many_single_char_names, reason = "the paper's letters say more than words would")]

use tch::{TchError, Tensor};

use super::{
    forward::{Layer, Pass},
    pointwise::{Drops, Normed},
    shape::Shape,
};
use crate::data::Batch;

/// The gradients of the three weights that all layers share: sums over layers, in the weights' kind; none before the first.
#[derive(Default)]
struct Shared {
    /// H x D x M.
    encoder: Option<Tensor>,
    /// H x D x M.
    encoder_v: Option<Tensor>,
    /// H x M x D.
    decoder: Option<Tensor>,
}

impl Pass<'_> {
    /// The gradients in the order and shapes of the weights, from the logits' derivatives.
    pub(super) fn backward(
        &self,
        start: Normed,
        layers: Vec<Layer>,
        dlogits: &Tensor,
        batch: &Batch,
    ) -> Result<Vec<Tensor>, TchError> {
        let Shape { heads, width, neurons, vocabulary, .. } = self.shape;
        let kind = self.fused.kind;
        let mut shared = Shared::default();
        // logits = x R
        let last = layers.last().map(|layer| layer.residual.operand.shallow_clone());
        let x = last.map_or_else(|| start.y.f_to_kind(self.fused.operands), Ok)?;
        let lm_head = x.f_transpose(0, 1)?.f_matmul(dlogits)?.f_to_kind(kind)?;
        let mut dx = dlogits.f_matmul(&self.operands.lm_head.f_transpose(0, 1)?)?.f_to_kind(kind)?;
        for (index, layer) in layers.into_iter().enumerate().rev() {
            dx = self.layer(index, layer, dx, &mut shared)?;
        }
        let dx = self.fused.pointwise.embed_backward(&start, dx)?;
        // The rows of each byte added up as a product, whose order of additions is fixed: adding them one by one in parallel
        // has none on a GPU.
        let bytes = batch.tokens.f_flatten(0, -1)?.f_unsqueeze(1)?;
        let is_byte = self.room_for(&[self.shape.rows(), vocabulary])?.f_scatter_value_(1, &bytes, 1.0)?;
        let embed = is_byte.f_transpose(0, 1)?.f_matmul(&dx)?;
        let shared = [shared.encoder, shared.encoder_v, shared.decoder];
        let [Some(encoder), Some(encoder_v), Some(decoder)] = shared else {
            return Err(TchError::Shape("a model without layers has no gradients".into()));
        };
        Ok(vec![embed, encoder, encoder_v, decoder.f_view_([heads * neurons, width])?, lm_head])
    }

    /// From the derivative by the residual stream after a layer to that before it, N x D.
    fn layer(&self, index: usize, layer: Layer, dx: Tensor, shared: &mut Shared) -> Result<Tensor, TchError> {
        let (shape, pointwise) = (&self.shape, &self.fused.pointwise);
        let Layer { x, q, v, mask, scores, a, residual } = layer;
        let (dx, dy) = pointwise.residual_backward(&residual, dx)?;
        drop(residual);
        // y = g D, g = dropout(q v), v = relu(a E_v)
        let dy = self.of_all_heads(&dy)?;
        let dg = dy.f_bmm(&self.operands.decoder.f_transpose(1, 2)?)?;
        let drops = Drops { rule: self.dropout, layer: index };
        let [g, dq, dv] = pointwise.gate_backward(shape, &q, v, dg, mask.as_ref(), drops)?;
        drop(mask);
        pointwise.add_product(&mut shared.decoder, &g.f_transpose(1, 2)?, &dy)?;
        drop(g);
        pointwise.add_product(&mut shared.encoder_v, &a.y.f_transpose(1, 2)?, &dv)?;
        let da = dv.f_bmm(&self.operands.encoder_v.f_transpose(1, 2)?)?;
        drop(dv);
        // a = norm(scores x)
        let dread = self.by_sequence(&pointwise.layer_norm_backward(&a, da)?)?;
        let by_reading = scores.f_transpose(1, 2)?.f_bmm(&dread)?;
        drop(scores);
        let dscores = dread.f_bmm(&self.by_sequence(&x)?.f_transpose(1, 2)?)?;
        // scores = r r^T, r = rope(q), q = relu(x E)
        let r = self.by_sequence(&pointwise.rope(shape, &q)?)?;
        let dr = pointwise.mirror(dscores)?.f_bmm(&r)?;
        drop(r);
        let dq = pointwise.rope_backward(shape, &q, dr, dq)?;
        drop(q);
        pointwise.add_product(&mut shared.encoder, &x.f_transpose(1, 2)?, &dq)?;
        let by_neurons = dq.f_bmm(&self.operands.encoder.f_transpose(1, 2)?)?;
        pointwise.add_heads(dx, [&by_neurons, &by_reading.f_view_([shape.heads, shape.rows(), shape.width])?])
    }
}
