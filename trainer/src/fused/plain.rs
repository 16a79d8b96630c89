//! The pointwise operations by libtorch's own: on any device and in any kind.

use tch::{Kind, TchError, Tensor};

use super::{
    pointwise::{Drops, Normed, PointwiseOps, Residual},
    shape::Shape,
};
use crate::model::{NORM_EPSILON, Rope};

/// libtorch's operations. Sums, norms and the loss are computed in f32, or in f64 where the weights are.
#[derive(Debug)]
pub(super) struct Plain {
    rope: Rope,
}

impl Plain {
    pub(super) fn new(rope: Rope) -> Self {
        Self { rope }
    }

    /// Turns the interleaved pairs of `x`, H x N x M, by their phases, or back by them.
    fn turned(&self, shape: &Shape, x: &Tensor, is_back: bool) -> Result<Tensor, TchError> {
        let Shape { heads, sequences, tokens, neurons, .. } = *shape;
        let x = x.f_view_([heads, sequences, tokens, neurons])?;
        let pairs = x.f_unflatten(-1, [-1, 2])?;
        let (even, odd) = (pairs.f_select(-1, 0)?, pairs.f_select(-1, 1)?);
        // A quarter of a turn on, or back.
        let quarter = if is_back { [odd, even.f_neg()?] } else { [odd.f_neg()?, even] };
        let quarter = Tensor::f_stack(&quarter, -1)?.f_flatten(-2, -1)?;
        let of_tokens = |phases: &Tensor| phases.f_narrow(0, 0, tokens);
        let (cos, sin) = (of_tokens(self.rope.cos())?, of_tokens(self.rope.sin())?);
        // One pass less than a product and a sum; it takes numbers of one kind only.
        let quarter = quarter.f_to_kind(sin.kind())?;
        x.f_mul(&cos)?.f_addcmul(&quarter, &sin)?.f_view_([heads, sequences * tokens, neurons])
    }
}

impl PointwiseOps for Plain {
    fn rectified(&self, x: Tensor) -> Result<Tensor, TchError> {
        let mut x = x;
        let _ = x.f_relu_()?;
        Ok(x)
    }

    fn rope(&self, shape: &Shape, q: &Tensor) -> Result<Tensor, TchError> {
        self.turned(shape, q, false)?.f_to_kind(q.kind())
    }

    fn rope_backward(&self, shape: &Shape, q: &Tensor, dr: Tensor, dq: Tensor) -> Result<Tensor, TchError> {
        let mut sum = self.turned(shape, &dr, true)?;
        let _ = sum.f_add_(&dq)?;
        only_where_above_0(q, &sum.f_to_kind(q.kind())?)
    }

    fn gate(
        &self,
        shape: &Shape,
        q: &Tensor,
        v: &Tensor,
        drops: Drops,
    ) -> Result<(Tensor, Option<Tensor>), TchError> {
        let mut g = q.f_mul(v)?;
        let Some(rule) = drops.rule else { return Ok((g, None)) };
        let size = [shape.heads, shape.sequences, shape.tokens, shape.neurons].map(|size| size as usize);
        let mask = rule.mask(drops.layer, size, g.kind(), g.device())?;
        let _ = g.f_mul_(&mask)?;
        Ok((g, Some(mask)))
    }

    fn gate_backward(
        &self,
        _shape: &Shape,
        q: &Tensor,
        v: Tensor,
        dg: Tensor,
        mask: Option<&Tensor>,
        _drops: Drops,
    ) -> Result<[Tensor; 3], TchError> {
        let (mut g, mut dg) = (q.f_mul(&v)?, dg);
        if let Some(mask) = mask {
            let _ = g.f_mul_(mask)?;
            let _ = dg.f_mul_(mask)?;
        }
        let dv = only_where_above_0(&v, &dg.f_mul(q)?)?;
        let _ = dg.f_mul_(&v)?;
        Ok([g, dg, dv])
    }

    fn layer_norm(&self, x: &Tensor) -> Result<Normed, TchError> {
        let normed = norm(&wide(x)?)?;
        Ok(Normed { y: normed.y.f_to_kind(x.kind())?, ..normed })
    }

    fn layer_norm_backward(&self, normed: &Normed, dy: Tensor) -> Result<Tensor, TchError> {
        norm_backward(&wide(&normed.y)?, &normed.reciprocals, &wide(&dy)?)?.f_to_kind(dy.kind())
    }

    fn embed(&self, table: &Tensor, bytes: &Tensor, operands: Kind) -> Result<(Normed, Tensor), TchError> {
        let x = norm(&table.f_index_select(0, bytes)?)?;
        let operand = x.y.f_to_kind(operands)?;
        Ok((x, operand))
    }

    fn embed_backward(&self, x: &Normed, dx: Tensor) -> Result<Tensor, TchError> {
        norm_backward(&x.y, &x.reciprocals, &dx)
    }

    fn residual(&self, x: &Tensor, parts: &Tensor) -> Result<Residual, TchError> {
        let y = norm(&parts.f_sum_dim_intlist(0, false, x.kind())?)?;
        let next = norm(&x.f_add(&y.y)?)?;
        let operand = next.y.f_to_kind(parts.kind())?;
        Ok(Residual { y, next, operand })
    }

    fn residual_backward(&self, residual: &Residual, dx: Tensor) -> Result<(Tensor, Tensor), TchError> {
        let Residual { y, next, operand } = residual;
        let dx = norm_backward(&next.y, &next.reciprocals, &dx)?;
        let dy = norm_backward(&y.y, &y.reciprocals, &dx)?;
        Ok((dx, dy.f_to_kind(operand.kind())?))
    }

    fn add_heads(&self, dx: Tensor, parts: [&Tensor; 2]) -> Result<Tensor, TchError> {
        let mut dx = dx;
        for part in parts {
            let _ = dx.f_add_(&part.f_sum_dim_intlist(0, false, dx.kind())?)?;
        }
        Ok(dx)
    }

    fn cross_entropy(
        &self,
        logits: Tensor,
        targets: &Tensor,
        weight: f64,
    ) -> Result<(Tensor, Tensor), TchError> {
        let shares = wide(&logits)?.f_log_softmax(-1, None)?;
        let targets = targets.f_unsqueeze(1)?;
        let losses = shares.f_gather(1, &targets, false)?.f_squeeze_dim(1)?.f_neg()?;
        let here = targets.f_full_like(-1.0)?.f_to_kind(shares.kind())?;
        let mut derivatives = shares.f_exp()?.f_scatter_add(1, &targets, &here)?;
        let _ = derivatives.f_mul_scalar_(weight)?;
        Ok((losses, derivatives.f_to_kind(logits.kind())?))
    }

    fn add_product(&self, sum: &mut Option<Tensor>, a: &Tensor, b: &Tensor) -> Result<(), TchError> {
        add_product(sum, a, b, self.rope.cos().kind())
    }

    fn below_diagonal(&self, scores: Tensor) -> Result<Tensor, TchError> {
        let mut scores = scores;
        let _ = scores.f_tril_(-1)?;
        Ok(scores)
    }

    fn mirror(&self, d: Tensor) -> Result<Tensor, TchError> {
        let below = self.below_diagonal(d)?;
        below.f_add(&below.f_transpose(1, 2)?)
    }
}

/// `sum` += a b in `kind`, which the sum is of; a sum that is not there yet is 0.
pub(super) fn add_product(
    sum: &mut Option<Tensor>,
    a: &Tensor,
    b: &Tensor,
    kind: Kind,
) -> Result<(), TchError> {
    match sum {
        Some(sum) if a.kind() == kind => drop(sum.f_baddbmm_(a, b)?),
        Some(sum) => drop(sum.f_add_(&a.f_bmm(b)?)?),
        None => *sum = Some(a.f_bmm(b)?.f_to_kind(kind)?),
    }
    Ok(())
}

/// At least f32.
fn wide(x: &Tensor) -> Result<Tensor, TchError> {
    x.f_to_kind(if x.kind() == Kind::BFloat16 { Kind::Float } else { x.kind() })
}

/// The derivative before a relu that gave `x`.
fn only_where_above_0(x: &Tensor, dx: &Tensor) -> Result<Tensor, TchError> {
    x.f_threshold_backward(dx, 0.0)
}

/// LayerNorm over the last dimension, without affine, in x's kind.
fn norm(x: &Tensor) -> Result<Normed, TchError> {
    let width = x.size().last().copied().unwrap_or_default();
    let (y, _, reciprocals) = x.f_native_layer_norm::<Tensor>([width], None, None, NORM_EPSILON)?;
    Ok(Normed { y, reciprocals })
}

/// (dy - mean(dy) - y mean(dy y)) / deviation.
fn norm_backward(y: &Tensor, reciprocals: &Tensor, dy: &Tensor) -> Result<Tensor, TchError> {
    let mean = |x: &Tensor| x.f_mean_dim(-1, true, x.kind());
    let along = y.f_mul(&mean(&dy.f_mul(y)?)?)?;
    dy.f_sub(&mean(dy)?)?.f_sub(&along)?.f_mul(reciprocals)
}
