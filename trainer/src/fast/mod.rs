//! The fast path on a CPU: loss and gradients without autograd, in arithmetic and order of its own.
//!
//! Beside [`crate::model`], which says the same as the paper does and is what this is checked against. Faster because a
//! worker takes one sequence at a time all the way forward and back, in buffers that are made once: no matrix over
//! tokens is allocated in a step, what is kept for the way back is that of one sequence and not of the batch, and threads never
//! wait for one another within a product.

mod kernels;
mod number;
mod sequence;

pub use number::Number;

use std::thread;

use hatchery_common::model::ModelConfig;
use tch::{Device, TchError, Tensor};

use self::{
    kernels::Turn,
    sequence::{Sequence, Shape, Worker},
};
use crate::{data::Batch, dropout::Dropout, model, weights::Weights};

/// BDH's loss and gradients on a CPU, for sequences of one length.
#[derive(Debug)]
pub struct Fast<N> {
    shape: Shape,
    cos: Vec<N>,
    sin: Vec<N>,
    /// All weights in one row, as of the last pass.
    weights: Vec<N>,
    workers: Vec<Worker<N>>,
}

impl<N: Number> Fast<N> {
    /// Makes room for `threads` sequences of `tokens` tokens at once.
    pub fn new(config: &ModelConfig, tokens: usize, threads: usize) -> Result<Self, TchError> {
        let shape = Shape::new(config, tokens);
        let turn = model::Turn::new(shape.neurons, tokens, Device::Cpu, N::KIND)?;
        let every_second = |phases: &Tensor| -> Result<Vec<N>, TchError> {
            numbers(&phases.f_slice(1, 0, None, 2)?.f_contiguous()?)
        };
        Ok(Self {
            cos: every_second(turn.cos())?,
            sin: every_second(turn.sin())?,
            weights: Vec::new(),
            workers: (0..threads.max(1))
                .map(|_| Worker::new(shape))
                .collect::<Result<_, _>>()
                .map_err(|error| TchError::Torch(format!("not enough memory: {error}")))?,
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
        let (first, others) = self.workers.split_at_mut(1);
        let gradients = &mut first[0].gradients;
        let chunk = gradients.len().div_ceil(others.len() + 1);
        thread::scope(|scope| {
            for (index, sum) in gradients.chunks_mut(chunk).enumerate() {
                let others = &*others;
                scope.spawn(move || {
                    for other in others {
                        kernels::add(&other.gradients[index * chunk..][..sum.len()], sum);
                    }
                });
            }
        });
        let mut start = 0;
        let gradients = weights.all().into_iter().map(|weight| {
            let part = &first[0].gradients[start..start + weight.numel()];
            start += weight.numel();
            Tensor::f_from_slice(part)?.f_view_(weight.size())
        });
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
        self.weights.resize(weights.all().iter().map(|weight| weight.numel()).sum(), N::ZERO);
        let mut start = 0;
        for weight in weights.all() {
            let end = start + weight.numel();
            weight.f_detach()?.f_copy_data(&mut self.weights[start..end], end - start)?;
            start = end;
        }
        let tokens = Vec::<i64>::try_from(&batch.tokens.f_flatten(0, -1)?)?;
        let targets = Vec::<i64>::try_from(&batch.targets.f_flatten(0, -1)?)?;
        assert!(tokens.len().is_multiple_of(t), "sequences of another length than {t}");
        let weight = 1.0 / tokens.len() as f64;
        let threads = self.workers.len();
        let (all, turn) = (&self.weights, Turn { cos: &self.cos, sin: &self.sin });
        let mut losses = vec![0.0; tokens.len()];
        thread::scope(|scope| {
            // Sequence i goes to worker i mod W; each worker's share of the losses goes with it.
            let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
            let sequences =
                tokens.chunks_exact(t).zip(targets.chunks_exact(t)).zip(losses.chunks_exact_mut(t));
            for (index, ((tokens, targets), losses)) in sequences.enumerate() {
                let sequence = Sequence { weights: all, turn, tokens, targets, dropout, index };
                shares[index % threads].push((sequence, losses));
            }
            for (worker, share) in self.workers.iter_mut().zip(shares) {
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    if learns {
                        worker.gradients.fill(N::ZERO);
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
