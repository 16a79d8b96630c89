//! One sequence through BDH, head by head, with all the room it needs made beforehand; `backward` leads back.
//!
//! Letters as in the paper: T tokens, D width, H heads, M neurons per head, V tokens known. Matrices lie with the tokens
//! as columns: x is D x T, a head's neurons are M x T. The neurons of a head come in blocks that, with what is made
//! of them, stay in the second cache from product to product. What the way back needs and cannot cheaply make again is
//! kept: the neurons q, the gates v, the scores and what attention read.
#![allow(clippy::many_single_char_names, reason = "the paper's letters say more than words would")]

use std::{collections::TryReserveError, ops::Range};

use super::{
    kernels::{self, Drops, Rope},
    number::Number,
    panels::{Line, PANEL, Panels, View, ViewMut},
    product::{
        Accumulation::{self, Add, Replace},
        Left, product,
    },
    shape::Shape,
    weights::{Gradients, Packed},
};
use crate::dropout::{Dropout, Place, RowKeys};

/// Numbers of a block of neurons, over all tokens: three blocks fill most of a second cache of half a megabyte.
const BLOCK_NUMBERS: usize = 1 << 15;

/// What a norm gave, D x T, and the reciprocal deviation of each token.
#[derive(Debug)]
pub(super) struct Normed<N> {
    pub(super) y: Panels<N>,
    reciprocals: Vec<Line<N>>,
}

impl<N: Number> Normed<N> {
    fn new(shape: &Shape) -> Result<Self, TryReserveError> {
        let reciprocals = vec![[N::ZERO; PANEL]; shape.tokens.div_ceil(PANEL)];
        Ok(Self { y: Panels::new(shape.width, shape.tokens)?, reciprocals })
    }

    fn norm(&mut self, width: usize) {
        kernels::norm(self.y.view_mut(), width, &mut self.reciprocals);
    }

    pub(super) fn back(&self, width: usize, derivative: &mut Panels<N>) {
        kernels::norm_backward(self.y.view(), width, &self.reciprocals, derivative.view_mut());
    }
}

/// What one head of one layer keeps for the way back.
#[derive(Debug)]
pub(super) struct Head<N> {
    /// Neurons after relu, M x T.
    pub(super) q: Panels<N>,
    /// Gates after relu, M x T.
    pub(super) v: Panels<N>,
    /// Of token s (row) for token t (column), T x T: r_s . r_t where s < t, else 0.
    pub(super) scores: Panels<N>,
    /// What attention read, normed.
    pub(super) a: Normed<N>,
}

#[derive(Debug)]
pub(super) struct Layer<N> {
    pub(super) heads: Vec<Head<N>>,
    /// What the decoder gave, normed.
    pub(super) y: Normed<N>,
    /// The residual stream after the layer.
    pub(super) x: Normed<N>,
}

/// Everything that one worker needs for one sequence at a time.
#[derive(Debug)]
pub(super) struct Worker<N> {
    pub(super) shape: Shape,
    /// The residual stream before the first layer.
    pub(super) x: Normed<N>,
    pub(super) layers: Vec<Layer<N>>,
    /// Two matrices for a block of neurons over all tokens.
    pub(super) blocks: [Panels<N>; 2],
    /// V x T
    pub(super) logits: Panels<N>,
    pub(super) keys: Vec<RowKeys<PANEL>>,
    pub(super) room: Room<N>,
    pub(super) gradients: Gradients<N>,
}

/// Room for the way back.
#[derive(Debug)]
pub(super) struct Room<N> {
    /// The derivatives by the residual stream, by what the decoder gave and by what attention read, D x T each.
    pub(super) dx: Panels<N>,
    pub(super) dy: Panels<N>,
    pub(super) da: Panels<N>,
    /// The derivatives by the scores, T x T.
    pub(super) dscores: Panels<N>,
    /// Transposes, T x D each.
    pub(super) x_t: Panels<N>,
    pub(super) dx_t: Panels<N>,
    pub(super) dy_t: Panels<N>,
    pub(super) a_t: Panels<N>,
}

/// What a sequence is, beside its worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence<'a, N> {
    pub(super) weights: &'a Packed<N>,
    pub(super) rope: Rope<'a, N>,
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
            Ok(Head {
                q: Panels::new(m, t)?,
                v: Panels::new(m, t)?,
                scores: Panels::new(t, t)?,
                a: Normed::new(&shape)?,
            })
        };
        let layer = |_| {
            let heads = (0..shape.heads).map(head).collect::<Result<_, TryReserveError>>()?;
            Ok(Layer { heads, y: Normed::new(&shape)?, x: Normed::new(&shape)? })
        };
        let block = block_len(t);
        Ok(Self {
            shape,
            x: Normed::new(&shape)?,
            layers: (0..shape.layers).map(layer).collect::<Result<_, TryReserveError>>()?,
            blocks: [Panels::new(block, t)?, Panels::new(block, t)?],
            logits: Panels::new(shape.vocabulary, t)?,
            keys: vec![RowKeys::default(); t.div_ceil(PANEL)],
            room: Room {
                dx: Panels::new(d, t)?,
                dy: Panels::new(d, t)?,
                da: Panels::new(d, t)?,
                dscores: Panels::new(t, t)?,
                x_t: Panels::new(t, d)?,
                dx_t: Panels::new(t, d)?,
                dy_t: Panels::new(t, d)?,
                a_t: Panels::new(t, d)?,
            },
            gradients: Gradients::new(&shape)?,
        })
    }

    /// The loss of each token in nats, told to `each`; then [`Self::backward`] may follow, for a loss that weighs each
    /// token by `weight`.
    pub(super) fn forward(&mut self, sequence: Sequence<'_, N>, weight: f64, each: impl FnMut(usize, f64)) {
        let Shape { width: d, tokens: t, vocabulary, .. } = self.shape;
        let weights = sequence.weights;
        for (index, token) in sequence.tokens.iter().enumerate() {
            self.room.x_t.set_row(index, &weights.embed[*token as usize * d..][..d]);
        }
        kernels::transpose(self.room.x_t.view(), self.x.y.view_mut());
        self.x.norm(d);
        let mut x = &self.x;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for (head_index, (head, weights)) in layer.heads.iter_mut().zip(&weights.heads).enumerate() {
                // q = relu(x E), r = rope(q), scores = r r^T
                for block in blocks(&self.shape) {
                    let encoder = Left::Transposed(weights.encoder.view().panels(panels(&block)));
                    product(encoder, x.y.view(), Replace, head.q.view_mut().rows(block.clone()));
                    let (q, rope) =
                        (head.q.view_mut().rows(block.clone()), sequence.rope.neurons(block.clone()));
                    kernels::relu_and_rope(q, rope, self.blocks[0].view_mut().rows(0..block.len()));
                    let r = self.blocks[0].view().rows(0..block.len());
                    upper_product(r, r, replacing_if(block.start == 0), &mut head.scores);
                }
                kernels::keep_above_diagonal(head.scores.view_mut());
                // a = norm(scores x)
                read(x.y.view(), &head.scores, &mut head.a.y);
                head.a.norm(d);
                // v = relu(a E_v), g = dropout(q v), y += g D
                set_keys(&mut self.keys, &sequence, index, head_index, t);
                for block in blocks(&self.shape) {
                    let encoder_v = Left::Transposed(weights.encoder_v.view().panels(panels(&block)));
                    product(encoder_v, head.a.y.view(), Replace, head.v.view_mut().rows(block.clone()));
                    let drops = Drops { rule: sequence.dropout, keys: &self.keys, first: block.start };
                    let (q, v) = (head.q.view().rows(block.clone()), head.v.view_mut().rows(block.clone()));
                    kernels::gate(q, v, drops, self.blocks[1].view_mut().rows(0..block.len()));
                    let accumulation = replacing_if(head_index == 0 && block.start == 0);
                    let g = self.blocks[1].view().rows(0..block.len());
                    let decoder = Left::Transposed(weights.decoder.view().rows(block));
                    product(decoder, g, accumulation, layer.y.y.view_mut());
                }
            }
            // x = norm(x + norm(y))
            layer.y.norm(d);
            layer.x.y.lines_mut().copy_from_slice(x.y.lines());
            kernels::add(layer.y.y.lines(), layer.x.y.lines_mut());
            layer.x.norm(d);
            x = &layer.x;
        }
        product(Left::Transposed(weights.lm_head.view()), x.y.view(), Replace, self.logits.view_mut());
        kernels::cross_entropy(self.logits.view_mut(), vocabulary, sequence.targets, weight, each);
    }
}

/// Neurons in a block: whole panels.
fn block_len(tokens: usize) -> usize {
    (BLOCK_NUMBERS / tokens / PANEL).max(1) * PANEL
}

/// The neurons of a head, with the filling, block by block.
pub(super) fn blocks(shape: &Shape) -> impl Iterator<Item = Range<usize>> + use<> {
    let (len, neurons) = (block_len(shape.tokens), shape.neurons.next_multiple_of(PANEL));
    (0..neurons).step_by(len).map(move |start| start..neurons.min(start + len))
}

/// The panels of these columns.
pub(super) fn panels(columns: &Range<usize>) -> Range<usize> {
    columns.start / PANEL..columns.end / PANEL
}

pub(super) fn replacing_if(is_first: bool) -> Accumulation {
    if is_first { Replace } else { Add }
}

/// a^T b of K x T matrices, on and above the tiles of the diagonal.
pub(super) fn upper_product<N: Number>(
    a: View<'_, N>,
    b: View<'_, N>,
    accumulation: Accumulation,
    out: &mut Panels<N>,
) {
    for panel in 0..b.panel_count() {
        let out: ViewMut<'_, N> = out.view_mut().panels(panel..panel + 1).rows(0..(panel + 1) * PANEL);
        product(Left::Transposed(a.panels(0..panel + 1)), b.panels(panel..panel + 1), accumulation, out);
    }
}

/// What each token reads of those before it: x scores, for scores that are 0 on and below the diagonal.
fn read<N: Number>(x: View<'_, N>, scores: &Panels<N>, a: &mut Panels<N>) {
    for panel in 0..x.panel_count() {
        let scores = scores.view().panels(panel..panel + 1).rows(0..(panel + 1) * PANEL);
        product(Left::Plain(x), scores, Replace, a.view_mut().panels(panel..panel + 1));
    }
}

/// The keys of each token's neurons in one head of one layer, as far as anything is dropped.
pub(super) fn set_keys<N>(
    keys: &mut [RowKeys<PANEL>],
    sequence: &Sequence<'_, N>,
    layer: usize,
    head: usize,
    tokens: usize,
) {
    if let Some(rule) = sequence.dropout {
        for token in 0..tokens {
            let key = rule.row(Place { layer, head, sequence: sequence.index, token });
            keys[token / PANEL].set(token % PANEL, key);
        }
    }
}
