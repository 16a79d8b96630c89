//! The fast path on a CPU: loss and gradients without autograd, in arithmetic and order of its own.
//!
//! Beside [`crate::model`], which says the same as the paper does and is what this is checked against. Faster because a
//! worker takes one sequence at a time all the way forward and back, in buffers that are made once: no matrix over
//! tokens is allocated in a step, what is kept for the way back is that of one sequence and not of the batch, and threads never
//! wait for one another within a product.

mod backward;
mod kernels;
mod multiversion;
mod number;
mod panels;
mod product;
mod sequence;
mod shape;
mod weights;

pub use number::Number;

use std::thread;

use hatchery_common::model::ModelConfig;
use tch::{Device, TchError, Tensor};

use self::{
    kernels::Rope,
    panels::Panels,
    sequence::{Sequence, Worker},
    shape::Shape,
    weights::{Gradients, Packed},
};
use crate::{data::Batch, dropout::Dropout, model, weights::Weights};

/// Floating-point operations of the matrix products that the fast path computes to learn from one sequence of `tokens`
/// tokens: a multiplication and an addition for each term. The loops between the products are not counted.
pub fn flops_per_sequence(config: &ModelConfig, tokens: usize) -> f64 {
    let panel = panels::PANEL as f64;
    let [t, d, m, v] = [tokens, config.width(), config.neurons_per_head(), config.vocabulary()]
        .map(|size| (size as f64 / panel).ceil() * panel);
    // Scores are made up to the tiles of the diagonal.
    let scores = t * (t + panel) / 2.0;
    // On the way there three products of T x D x M, on the way back six; scores from neurons, and back from all of them;
    // what attention reads, the derivative of what it has read, and that by the scores.
    let head = 9.0 * t * d * m + scores * m + t * t * m + 3.0 * scores * d;
    2.0 * ((config.layers() * config.heads()) as f64 * head + 3.0 * t * d * v)
}

/// BDH's loss and gradients on a CPU, for sequences of one length.
#[derive(Debug)]
pub struct Fast<N> {
    shape: Shape,
    /// M/2 x T
    cos: Panels<N>,
    sin: Panels<N>,
    /// All weights, and then all gradients, in one row.
    all: Vec<N>,
    weights: Packed<N>,
    workers: Vec<Worker<N>>,
}

impl<N: Number> Fast<N> {
    /// Makes room for `threads` sequences of `tokens` tokens at once.
    pub fn new(config: &ModelConfig, tokens: usize, threads: usize) -> Result<Self, TchError> {
        let shape = Shape {
            layers: config.layers(),
            heads: config.heads(),
            width: config.width(),
            neurons: config.neurons_per_head(),
            vocabulary: config.vocabulary(),
            tokens,
        };
        let no_room = |error| TchError::Torch(format!("not enough memory: {error}"));
        let rope = model::Rope::new(shape.neurons, tokens, Device::Cpu, N::KIND)?;
        let of_pairs = |phases: &Tensor| {
            let numbers = numbers(&phases.f_slice(1, 0, None, 2)?.f_contiguous()?)?;
            let mut panels = Panels::new(shape.neurons / 2, tokens).map_err(no_room)?;
            panels.pack_transposed(&numbers, tokens);
            Ok::<_, TchError>(panels)
        };
        Ok(Self {
            cos: of_pairs(rope.cos())?,
            sin: of_pairs(rope.sin())?,
            all: vec![N::ZERO; shape.ranges()[4].end],
            weights: Packed::new(&shape).map_err(no_room)?,
            workers: (0..threads.max(1))
                .map(|_| Worker::new(shape))
                .collect::<Result<_, _>>()
                .map_err(no_room)?,
            shape,
        })
    }

    /// Tokens in a sequence.
    pub fn tokens(&self) -> usize {
        self.shape.tokens
    }

    /// The mean loss of `batch` in nats, and its gradients in the order and shapes of the weights.
    ///
    /// Equal for equal inputs and an equal number of threads, to the bit: each sequence has its worker, and the workers'
    /// gradients are added in their order.
    pub fn loss_and_gradients(
        &mut self,
        weights: &Weights,
        batch: &Batch,
        dropout: Option<Dropout>,
    ) -> Result<(f64, Vec<Tensor>), TchError> {
        let losses = self.pass(weights, batch, dropout, true)?;
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let threads = self.workers.len();
        let mut parts: Vec<_> = self.workers.iter_mut().map(|worker| &mut worker.gradients).collect();
        Gradients::sum_up(&mut parts, &self.shape, &mut self.all, threads);
        let gradients = weights.all().into_iter().zip(self.shape.ranges());
        let gradients =
            gradients.map(|(weight, range)| Tensor::f_from_slice(&self.all[range])?.f_view_(weight.size()));
        Ok((mean, gradients.collect::<Result<_, _>>()?))
    }

    /// The loss of each token of `batch` in nats, sequence after sequence; nothing is dropped.
    pub fn losses(&mut self, weights: &Weights, batch: &Batch) -> Result<Vec<f64>, TchError> {
        self.pass(weights, batch, None, false)
    }

    fn pass(
        &mut self,
        weights: &Weights,
        batch: &Batch,
        dropout: Option<Dropout>,
        learns: bool,
    ) -> Result<Vec<f64>, TchError> {
        let t = self.shape.tokens;
        for (weight, range) in weights.all().into_iter().zip(self.shape.ranges()) {
            weight.f_detach()?.f_copy_data(&mut self.all[range.clone()], range.len())?;
        }
        self.weights.pack(&self.shape, &self.all, self.workers.len());
        let tokens = Vec::<i64>::try_from(&batch.tokens.f_flatten(0, -1)?)?;
        let targets = Vec::<i64>::try_from(&batch.targets.f_flatten(0, -1)?)?;
        assert!(tokens.len().is_multiple_of(t), "sequences of another length than {t}");
        let weight = 1.0 / tokens.len() as f64;
        let threads = self.workers.len();
        let (packed, rope) = (&self.weights, Rope { cos: self.cos.view(), sin: self.sin.view() });
        let mut losses = vec![0.0; tokens.len()];
        thread::scope(|scope| {
            // Sequence i goes to worker i mod W; each worker's share of the losses goes with it.
            let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
            let sequences =
                tokens.chunks_exact(t).zip(targets.chunks_exact(t)).zip(losses.chunks_exact_mut(t));
            for (index, ((tokens, targets), losses)) in sequences.enumerate() {
                let sequence = Sequence { weights: packed, rope, tokens, targets, dropout, index };
                shares[index % threads].push((sequence, losses));
            }
            for (worker, share) in self.workers.iter_mut().zip(shares) {
                scope.spawn(move || {
                    if learns {
                        worker.gradients.clear();
                    }
                    for (sequence, losses) in share {
                        worker.forward(sequence, weight, |position, loss| losses[position] = loss);
                        if learns {
                            worker.backward(sequence);
                        }
                    }
                });
            }
        });
        Ok(losses)
    }
}

fn numbers<N: Number>(tensor: &Tensor) -> Result<Vec<N>, TchError> {
    let mut numbers = vec![N::ZERO; tensor.numel()];
    tensor.f_copy_data(&mut numbers, tensor.numel())?;
    Ok(numbers)
}
