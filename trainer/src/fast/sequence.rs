//! One sequence through BDH and back, head by head, with all the room it needs made beforehand.
//!
//! Letters as in the paper: T tokens, D width, H heads, M neurons per head, V tokens known. A matrix over all neurons of
//! one head and sequence, T x M, is as large as the processor's caches allow; a matrix over the whole batch would go
//! through main memory between any two steps. What the way back needs and cannot cheaply make again is kept: the
//! neurons q, the gates v, the scores and what attention read.
#![allow(clippy::many_single_char_names, reason = "the paper's letters say more than words would")]

use std::{collections::TryReserveError, ops::Range};

use hatchery_common::model::ModelConfig;
use hatchery_trainer_shim::{
    Accumulation::{Add, Replace},
    Matrix, MatrixMut, gemm,
};

use super::{
    Number,
    kernels::{self, Drops, Turn},
};
use crate::dropout::{Dropout, Place, RowKey};

/// Rows of scores that are made at a time; what lies above the diagonal of their last tile is made in vain.
const SCORE_ROWS: usize = 64;

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

impl Shape {
    pub(super) fn new(config: &ModelConfig, tokens: usize) -> Self {
        Self {
            layers: config.layers(),
            heads: config.heads(),
            width: config.width(),
            neurons: config.neurons_per_head(),
            vocabulary: config.vocabulary(),
            tokens,
        }
    }

    /// Where each of the five weights stands when all are in one row, in the order of [`crate::weights::Weights`].
    fn ranges(&self) -> [Range<usize>; 5] {
        let head = self.width * self.heads * self.neurons;
        let embedding = self.vocabulary * self.width;
        let mut end = 0;
        [embedding, head, head, head, embedding].map(|len| {
            end += len;
            end - len..end
        })
    }
}

/// The five weights, or their gradients.
#[derive(Clone, Copy, Debug)]
struct Parts<T> {
    embed: T,
    encoder: T,
    encoder_v: T,
    decoder: T,
    lm_head: T,
}

fn parts<'a, N>(shape: &Shape, all: &'a [N]) -> Parts<&'a [N]> {
    let [embed, encoder, encoder_v, decoder, lm_head] = shape.ranges().map(|range| &all[range]);
    Parts { embed, encoder, encoder_v, decoder, lm_head }
}

fn parts_mut<'a, N>(shape: &Shape, all: &'a mut [N]) -> Parts<&'a mut [N]> {
    let mut rest = all;
    let mut next = |range: Range<usize>| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(range.len());
        rest = after;
        part
    };
    let [embed, encoder, encoder_v, decoder, lm_head] = shape.ranges().map(&mut next);
    Parts { embed, encoder, encoder_v, decoder, lm_head }
}

/// What a norm gave, T x D, and the reciprocal deviation of each row.
#[derive(Debug)]
struct Normed<N> {
    y: Vec<N>,
    reciprocals: Vec<N>,
}

impl<N: Number> Normed<N> {
    fn new(shape: &Shape) -> Result<Self, TryReserveError> {
        Ok(Self { y: zeros(shape.tokens * shape.width)?, reciprocals: zeros(shape.tokens)? })
    }

    fn norm(&mut self, width: usize) {
        kernels::norm(&mut self.y, width, &mut self.reciprocals);
    }

    fn back(&self, width: usize, derivative: &mut [N]) {
        kernels::norm_backward(&self.y, width, &self.reciprocals, derivative);
    }
}

/// What one head of one layer keeps for the way back.
#[derive(Debug)]
struct Head<N> {
    /// Neurons after relu, T x M.
    q: Vec<N>,
    /// Gates after relu, T x M.
    v: Vec<N>,
    /// tril(r r^T, -1), T x T; what lies above is 0 from the start.
    scores: Vec<N>,
    /// What attention read, normed.
    a: Normed<N>,
}

#[derive(Debug)]
struct Layer<N> {
    heads: Vec<Head<N>>,
    /// What the decoder gave, normed.
    y: Normed<N>,
    /// The residual stream after the layer.
    x: Normed<N>,
}

/// Everything that one worker needs for one sequence at a time.
#[derive(Debug)]
pub(super) struct Worker<N> {
    shape: Shape,
    /// The residual stream before the first layer.
    x: Normed<N>,
    layers: Vec<Layer<N>>,
    /// Three matrices of T x M.
    neurons: [Vec<N>; 3],
    /// T x T
    scores: Vec<N>,
    /// Three matrices of T x D.
    widths: [Vec<N>; 3],
    /// T x V
    logits: Vec<N>,
    /// T
    rows: Vec<RowKey>,
    /// Of all weights in one row.
    pub(super) gradients: Vec<N>,
}

/// What a sequence is, beside its worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence<'a, N> {
    /// All weights in one row.
    pub(super) weights: &'a [N],
    pub(super) turn: Turn<'a, N>,
    pub(super) tokens: &'a [i64],
    pub(super) targets: &'a [i64],
    pub(super) dropout: Option<Dropout>,
    /// The row of the batch.
    pub(super) index: usize,
}

impl<N: Number> Worker<N> {
    /// Makes all the room there is to make.
    pub(super) fn new(shape: Shape) -> Result<Self, TryReserveError> {
        let (t, d, m) = (shape.tokens, shape.width, shape.neurons);
        let head = |_| {
            Ok(Head { q: zeros(t * m)?, v: zeros(t * m)?, scores: zeros(t * t)?, a: Normed::new(&shape)? })
        };
        let layer = |_| {
            let heads = (0..shape.heads).map(head).collect::<Result<_, TryReserveError>>()?;
            Ok(Layer { heads, y: Normed::new(&shape)?, x: Normed::new(&shape)? })
        };
        Ok(Self {
            shape,
            x: Normed::new(&shape)?,
            layers: (0..shape.layers).map(layer).collect::<Result<_, TryReserveError>>()?,
            neurons: [zeros(t * m)?, zeros(t * m)?, zeros(t * m)?],
            scores: zeros(t * t)?,
            widths: [zeros(t * d)?, zeros(t * d)?, zeros(t * d)?],
            logits: zeros(t * shape.vocabulary)?,
            rows: vec![RowKey::default(); t],
            gradients: zeros(shape.ranges()[4].end)?,
        })
    }

    /// The loss of each token in nats, told to `each`; then [`Self::backward`] may follow, for a loss that weighs each
    /// token by `weight`.
    pub(super) fn forward(&mut self, sequence: Sequence<'_, N>, weight: f64, each: impl FnMut(usize, f64)) {
        let Shape { width: d, neurons: m, tokens: t, vocabulary: v, .. } = self.shape;
        let weights = parts(&self.shape, sequence.weights);
        for (x, token) in self.x.y.chunks_exact_mut(d).zip(sequence.tokens) {
            x.copy_from_slice(&weights.embed[*token as usize * d..][..d]);
        }
        self.x.norm(d);
        let mut x = &self.x;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for (head_index, head) in layer.heads.iter_mut().enumerate() {
                let head_weights = head_weights(&weights, &self.shape, head_index);
                let [r, g, _] = &mut self.neurons;
                // q = relu(x E), r = rope(q)
                gemm(
                    Matrix::new(&x.y, t, d),
                    head_weights.encoder,
                    Replace,
                    MatrixMut::new(&mut head.q, t, m),
                );
                kernels::relu_and_rope(&mut head.q, sequence.turn, r);
                // a = norm(tril(r r^T, -1) x)
                lower_product(Matrix::new(r, t, m), r, m, t, &mut head.scores);
                gemm(
                    Matrix::new(&head.scores, t, t),
                    Matrix::new(&x.y, t, d),
                    Replace,
                    MatrixMut::new(&mut head.a.y, t, d),
                );
                head.a.norm(d);
                // g = dropout(q relu(a E_v)), y += g D
                let a = Matrix::new(&head.a.y, t, d);
                gemm(a, head_weights.encoder_v, Replace, MatrixMut::new(&mut head.v, t, m));
                let drops = drops(&sequence, &mut self.rows, index, head_index);
                kernels::gate(&head.q, &mut head.v, m, drops, g);
                let accumulation = if head_index == 0 { Replace } else { Add };
                gemm(
                    Matrix::new(g, t, m),
                    head_weights.decoder,
                    accumulation,
                    MatrixMut::new(&mut layer.y.y, t, d),
                );
            }
            // x = norm(x + norm(y))
            layer.y.norm(d);
            layer.x.y.copy_from_slice(&x.y);
            kernels::add(&layer.y.y, &mut layer.x.y);
            layer.x.norm(d);
            x = &layer.x;
        }
        let lm_head = Matrix::new(weights.lm_head, d, v);
        gemm(Matrix::new(&x.y, t, d), lm_head, Replace, MatrixMut::new(&mut self.logits, t, v));
        kernels::cross_entropy(&mut self.logits, v, sequence.targets, weight, each);
    }

    /// Adds the gradients of the sequence that has just gone forward.
    pub(super) fn backward(&mut self, sequence: Sequence<'_, N>) {
        let Shape { width: d, neurons: m, tokens: t, vocabulary: v, heads, .. } = self.shape;
        let weights = parts(&self.shape, sequence.weights);
        let gradients = parts_mut(&self.shape, &mut self.gradients);
        let [dx, dy, da] = &mut self.widths;

        // logits = x R: their derivatives stand in their place.
        let x = self.layers.last().map_or(&self.x, |layer| &layer.x);
        let dlogits = Matrix::new(&self.logits, t, v);
        gemm(Matrix::new(&x.y, t, d).transposed(), dlogits, Add, MatrixMut::new(gradients.lm_head, d, v));
        gemm(dlogits, Matrix::new(weights.lm_head, d, v).transposed(), Replace, MatrixMut::new(dx, t, d));

        for index in (0..self.layers.len()).rev() {
            let (before, from) = self.layers.split_at(index);
            let x = &before.last().map_or(&self.x, |layer| &layer.x).y;
            let layer = &from[0];
            // x' = norm(x + norm(y)): the derivative goes both ways.
            layer.x.back(d, dx);
            dy.copy_from_slice(dx);
            layer.y.back(d, dy);
            for head_index in 0..heads {
                let head = &layer.heads[head_index];
                let head_weights = head_weights(&weights, &self.shape, head_index);
                let range = head_index * d * m..(head_index + 1) * d * m;
                let [g, dv, dq] = &mut self.neurons;
                // y += g D, g = dropout(q v), v = relu(a E_v)
                gemm(
                    Matrix::new(dy, t, d),
                    head_weights.decoder.transposed(),
                    Replace,
                    MatrixMut::new(g, t, m),
                );
                let drops = drops(&sequence, &mut self.rows, index, head_index);
                kernels::gate_backward(&head.q, &head.v, m, drops, g, dv, dq);
                gemm(
                    Matrix::new(g, t, m).transposed(),
                    Matrix::new(dy, t, d),
                    Add,
                    MatrixMut::new(&mut gradients.decoder[range.clone()], m, d),
                );
                gemm(
                    Matrix::new(&head.a.y, t, d).transposed(),
                    Matrix::new(dv, t, m),
                    Add,
                    MatrixMut::new(&mut gradients.encoder_v[range.clone()], d, m),
                );
                gemm(
                    Matrix::new(dv, t, m),
                    head_weights.encoder_v.transposed(),
                    Replace,
                    MatrixMut::new(da, t, d),
                );
                // a = norm(scores x)
                head.a.back(d, da);
                gemm(
                    Matrix::new(&head.scores, t, t).transposed(),
                    Matrix::new(da, t, d),
                    Add,
                    MatrixMut::new(dx, t, d),
                );
                // scores = tril(r r^T, -1), so dr = (ds + ds^T) r: one product, because queries are keys.
                lower_product(Matrix::new(da, t, d), x, d, t, &mut self.scores);
                kernels::mirror(&mut self.scores, t);
                let (r, dr) = (dv, g);
                kernels::rope(&head.q, sequence.turn, r);
                gemm(
                    Matrix::new(&self.scores, t, t),
                    Matrix::new(r, t, m),
                    Replace,
                    MatrixMut::new(dr, t, m),
                );
                // r = rope(q), q = relu(x E)
                kernels::rope_backward(&head.q, dr, sequence.turn, dq);
                gemm(
                    Matrix::new(x, t, d).transposed(),
                    Matrix::new(dq, t, m),
                    Add,
                    MatrixMut::new(&mut gradients.encoder[range], d, m),
                );
                gemm(Matrix::new(dq, t, m), head_weights.encoder.transposed(), Add, MatrixMut::new(dx, t, d));
            }
        }
        self.x.back(d, dx);
        for (dx, token) in dx.chunks_exact(d).zip(sequence.tokens) {
            kernels::add(dx, &mut gradients.embed[*token as usize * d..][..d]);
        }
    }
}

/// One head's part of the weights: D x M, D x M, M x D.
struct HeadWeights<'a, N> {
    encoder: Matrix<'a, N>,
    encoder_v: Matrix<'a, N>,
    decoder: Matrix<'a, N>,
}

fn head_weights<'a, N: Number>(weights: &Parts<&'a [N]>, shape: &Shape, head: usize) -> HeadWeights<'a, N> {
    let (d, m) = (shape.width, shape.neurons);
    let range = head * d * m..(head + 1) * d * m;
    HeadWeights {
        encoder: Matrix::new(&weights.encoder[range.clone()], d, m),
        encoder_v: Matrix::new(&weights.encoder_v[range.clone()], d, m),
        decoder: Matrix::new(&weights.decoder[range], m, d),
    }
}

/// tril(a b^T, -1) of T x K matrices, some rows at a time, so that hardly anything above the diagonal is made.
fn lower_product<N: Number>(a: Matrix<'_, N>, b: &[N], k: usize, t: usize, out: &mut [N]) {
    for start in (0..t).step_by(SCORE_ROWS) {
        let end = t.min(start + SCORE_ROWS);
        let b = Matrix::new(&b[..end * k], end, k).transposed();
        gemm(a.rows(start..end), b, Replace, MatrixMut::strided(&mut out[start * t..], end - start, end, t));
        kernels::keep_below_diagonal(&mut out[start * t + start..], end - start, t);
    }
}

fn drops<'a, N>(sequence: &Sequence<'_, N>, rows: &'a mut [RowKey], layer: usize, head: usize) -> Drops<'a> {
    if let Some(rule) = sequence.dropout {
        for (token, row) in rows.iter_mut().enumerate() {
            *row = rule.row(Place { layer, head, sequence: sequence.index, token });
        }
    }
    Drops { rule: sequence.dropout, rows }
}

fn zeros<N: Number>(len: usize) -> Result<Vec<N>, TryReserveError> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(len)?;
    zeros.resize(len, N::ZERO);
    Ok(zeros)
}
