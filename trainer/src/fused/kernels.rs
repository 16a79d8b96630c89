//! The pointwise operations by kernels of one pass each.

use std::rc::Rc;

use hatchery_trainer_shim::{
    self as shim,
    kernels::{self, Kernels, Rows},
};
use tch::{Kind, TchError, Tensor};

use super::{
    plain,
    pointwise::{Drops, Normed, PointwiseOps, Residual},
    shape::Shape,
};
use crate::model::Rope;

/// The kernels of one GPU, or the same emulated.
#[derive(Debug)]
pub(super) struct ByKernels {
    kernels: Rc<Kernels>,
    /// The cosine and sine of each pair's phase, T x M/2 x 2 f32.
    rope: Tensor,
}

impl ByKernels {
    pub(super) fn new(kernels: Rc<Kernels>, rope: &Rope) -> Result<Self, TchError> {
        Ok(Self { kernels, rope: rope.of_pairs()? })
    }

    /// The phases of the first T positions.
    fn angles(&self, shape: &Shape) -> Result<Tensor, TchError> {
        self.rope.f_narrow(0, 0, shape.tokens)
    }
}

impl PointwiseOps for ByKernels {
    // The kernels rectify what they read.
    fn rectified(&self, x: Tensor) -> Result<Tensor, TchError> {
        Ok(x)
    }

    fn rope(&self, shape: &Shape, q: &Tensor) -> Result<Tensor, TchError> {
        let mut r = q.f_empty_like()?;
        self.kernels.rope(rows(shape), q, &self.angles(shape)?, &mut r)?;
        Ok(r)
    }

    fn rope_backward(&self, shape: &Shape, q: &Tensor, dr: Tensor, dq: Tensor) -> Result<Tensor, TchError> {
        let mut dq = dq;
        self.kernels.rope_backward(rows(shape), q, &dr, &self.angles(shape)?, &mut dq)?;
        Ok(dq)
    }

    // The mask is made again on the way back, in passing.
    fn gate(
        &self,
        shape: &Shape,
        q: &Tensor,
        v: &Tensor,
        drops: Drops,
    ) -> Result<(Tensor, Option<Tensor>), TchError> {
        let mut g = q.f_empty_like()?;
        self.kernels.gate(rows(shape), q, v, &mut g, of_layer(drops))?;
        Ok((g, None))
    }

    fn gate_backward(
        &self,
        shape: &Shape,
        q: &Tensor,
        v: Tensor,
        dg: Tensor,
        _mask: Option<&Tensor>,
        drops: Drops,
    ) -> Result<[Tensor; 3], TchError> {
        let (mut v, mut dg, mut g) = (v, dg, q.f_empty_like()?);
        self.kernels.gate_backward(rows(shape), q, &mut v, &mut dg, &mut g, of_layer(drops))?;
        Ok([g, dg, v])
    }

    fn layer_norm(&self, x: &Tensor) -> Result<Normed, TchError> {
        let size = x.size();
        let mut normed =
            Normed { y: x.f_empty_like()?, reciprocals: reciprocals(x, &size[..size.len() - 1])? };
        self.kernels.layer_norm(x, &mut normed.y, &mut normed.reciprocals)?;
        Ok(normed)
    }

    fn layer_norm_backward(&self, normed: &Normed, dy: Tensor) -> Result<Tensor, TchError> {
        let mut dy = dy;
        self.kernels.layer_norm_backward(&normed.y, &normed.reciprocals, &mut dy)?;
        Ok(dy)
    }

    fn embed(&self, table: &Tensor, bytes: &Tensor, operands: Kind) -> Result<(Normed, Tensor), TchError> {
        let (rows, width) = (bytes.numel() as i64, table.size()[1]);
        let y = Tensor::f_empty([rows, width], (Kind::Float, table.device()))?;
        let mut operand = Tensor::f_empty([rows, width], (operands, table.device()))?;
        let mut x = Normed { reciprocals: reciprocals(&y, &[rows])?, y };
        self.kernels.embed(table, bytes, &mut x.y, &mut x.reciprocals, &mut operand)?;
        Ok((x, operand))
    }

    fn embed_backward(&self, x: &Normed, dx: Tensor) -> Result<Tensor, TchError> {
        let mut dx = dx;
        self.kernels.embed_backward(&x.y, &x.reciprocals, &mut dx)?;
        Ok(dx)
    }

    fn residual(&self, x: &Tensor, parts: &Tensor) -> Result<Residual, TchError> {
        let rows = x.size()[0];
        let room =
            || Ok::<_, TchError>(Normed { y: x.f_empty_like()?, reciprocals: reciprocals(x, &[rows])? });
        let mut operand = Tensor::f_empty(x.size(), (parts.kind(), x.device()))?;
        let (mut y, mut next) = (room()?, room()?);
        let reciprocals = [&mut y.reciprocals, &mut next.reciprocals];
        self.kernels.residual(x, parts, [&mut y.y, &mut next.y], reciprocals, &mut operand)?;
        Ok(Residual { y, next, operand })
    }

    fn residual_backward(&self, residual: &Residual, dx: Tensor) -> Result<(Tensor, Tensor), TchError> {
        let Residual { y, next, operand } = residual;
        let (mut dx, mut dy) = (dx, operand.f_empty_like()?);
        let reciprocals = [&y.reciprocals, &next.reciprocals];
        self.kernels.residual_backward([&y.y, &next.y], reciprocals, &mut dx, &mut dy)?;
        Ok((dx, dy))
    }

    fn add_heads(&self, dx: Tensor, parts: [&Tensor; 2]) -> Result<Tensor, TchError> {
        let mut dx = dx;
        self.kernels.add_heads(&mut dx, parts)?;
        Ok(dx)
    }

    fn cross_entropy(
        &self,
        logits: Tensor,
        targets: &Tensor,
        weight: f64,
    ) -> Result<(Tensor, Tensor), TchError> {
        let (mut logits, mut losses) = (logits, reciprocals(targets, &[targets.numel() as i64])?);
        self.kernels.cross_entropy(&mut logits, targets, &mut losses, weight as f32)?;
        Ok((losses, logits))
    }

    fn add_product(&self, sum: &mut Option<Tensor>, a: &Tensor, b: &Tensor) -> Result<(), TchError> {
        if a.kind() != Kind::BFloat16 || !a.device().is_cuda() {
            return plain::add_product(sum, a, b, Kind::Float);
        }
        let is_more = sum.is_some();
        let sum = match sum {
            Some(sum) => sum,
            None => sum.insert(room_for_product(a, b)?),
        };
        shim::wide_product(sum, a, b, is_more)
    }

    fn below_diagonal(&self, scores: Tensor) -> Result<Tensor, TchError> {
        let mut scores = scores;
        self.kernels.below_diagonal(&mut scores)?;
        Ok(scores)
    }

    fn mirror(&self, d: Tensor) -> Result<Tensor, TchError> {
        let mut d = d;
        self.kernels.mirror(&mut d)?;
        Ok(d)
    }
}

fn rows(shape: &Shape) -> Rows {
    Rows { heads: shape.heads, of_head: shape.rows(), tokens: shape.tokens }
}

fn of_layer(drops: Drops) -> kernels::Drops {
    drops.rule.map_or(kernels::Drops::NOTHING, |rule| rule.for_kernels(drops.layer))
}

/// Room for a b in f32.
fn room_for_product(a: &Tensor, b: &Tensor) -> Result<Tensor, TchError> {
    let ((matrices, rows, _), (_, _, columns)) = (a.size3()?, b.size3()?);
    Tensor::f_empty([matrices, rows, columns], (Kind::Float, a.device()))
}

/// Room for an f32 for each row, where `beside` is.
fn reciprocals(beside: &Tensor, size: &[i64]) -> Result<Tensor, TchError> {
    Tensor::f_empty(size, (Kind::Float, beside.device()))
}
