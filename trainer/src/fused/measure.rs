//! How long each operation between the products takes, by kernels and by libtorch's operations: what each kernel brings, and how
//! near it is to what the device's memory allows.
#![allow(clippy::many_single_char_names, reason = "the paper's letters say more than words would")]

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor, no_grad_guard};

use super::{
    Fused,
    plain::Plain,
    pointwise::{Drops, Normed, PointwiseOps, Residual},
    shape::Shape,
};
use crate::{dropout::Dropout, torch_error::lacks_memory};

/// Calls before the clock starts, in which memory is taken from the device.
const WARM_UP: usize = 3;
/// Something has to be dropped, as in training.
const PROBABILITY: f64 = 0.1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// As in `pointwise.rs`.
    pub name: String,
    /// The least that has to be read and written.
    pub bytes: u64,
    /// By kernels, where there are any.
    pub kernels_secs: Option<f64>,
    /// By libtorch's operations, where there is room for what they need beside it.
    pub operations_secs: Option<f64>,
}

/// What operations a step consists of beside its products, and what the memory gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Bytes a second of a plain copy, read and written ones counted.
    pub copy_bytes_per_sec: f64,
    /// Each operation once; a layer has one of each, but for the rope, of which it has two.
    pub operations: Vec<Timed>,
}

type Call<'a> = Box<dyn Fn(&dyn PointwiseOps) -> Result<(), TchError> + 'a>;

impl Fused {
    /// Times each operation for `sequences` of the most tokens that this was made for, the mean of `repeats` calls; `wait` waits
    /// for the device.
    pub fn measure(&self, sequences: i64, repeats: usize, wait: &dyn Fn()) -> Result<Measured, TchError> {
        let _guard = no_grad_guard();
        let config = &self.config;
        let shape = Shape {
            layers: config.layers(),
            heads: config.heads() as i64,
            width: config.width() as i64,
            neurons: config.neurons_per_head() as i64,
            vocabulary: config.vocabulary() as i64,
            sequences,
            tokens: self.tokens_max as i64,
        };
        let plain = Plain::new(self.rope()?);
        let secs = |call: &dyn Fn() -> Result<(), TchError>| {
            (0..WARM_UP).try_for_each(|_| call())?;
            wait();
            let begun = Instant::now();
            (0..repeats).try_for_each(|_| call())?;
            wait();
            Ok::<_, TchError>(begun.elapsed().as_secs_f64() / repeats as f64)
        };
        let room = Room::new(&shape, self.operands, self.device)?;
        let copied = secs(&|| room.neurons[0].shallow_clone().f_copy_(&room.neurons[1]))?;
        let neurons_bytes = bytes(&room.neurons[0]);
        let time = |(name, bytes, call): (&'static str, u64, Call)| {
            let kernels = self.has_kernels.then(|| secs(&|| call(&*self.pointwise))).transpose()?;
            Ok(Timed {
                name: name.into(),
                bytes,
                kernels_secs: kernels,
                operations_secs: match secs(&|| call(&plain)) {
                    Err(error) if lacks_memory(&error) => None,
                    secs => Some(secs?),
                },
            })
        };
        let operations = room.calls(&shape).into_iter().map(time).collect::<Result<_, TchError>>()?;
        Ok(Measured { copy_bytes_per_sec: 2.0 * neurons_bytes as f64 / copied, operations })
    }
}

/// Tensors of all kinds to work on.
struct Room {
    /// H x N x M.
    neurons: [Tensor; 3],
    /// The same: what a gate kept. Kernels make it again instead.
    mask: Tensor,
    /// H x N x D.
    parts: [Tensor; 2],
    /// N x D f32.
    stream: [Tensor; 3],
    /// N x 1 f32.
    reciprocals: Tensor,
    /// H x N x 1 f32.
    reciprocals_of_heads: Tensor,
    /// H*B x T x T.
    scores: Tensor,
    /// N x V.
    logits: Tensor,
    /// N.
    bytes: Tensor,
    /// V x D f32.
    table: Tensor,
}

impl Room {
    fn new(shape: &Shape, operands: Kind, device: Device) -> Result<Self, TchError> {
        let Shape { heads: h, width: d, neurons: m, vocabulary: v, sequences: b, tokens: t, .. } = *shape;
        let n = shape.rows();
        // Numbers of both signs and of no pattern: what is multiplied by zeros goes faster than what is trained.
        let random = |size: &[i64], kind: Kind| {
            let count: i64 = size.iter().product();
            let numbers = Tensor::f_arange(count, (Kind::Float, device))?;
            numbers.f_mul_scalar(0.7)?.f_sin()?.f_to_kind(kind)?.f_view_(size)
        };
        let neurons = || random(&[h, n, m], operands);
        let stream = || random(&[n, d], Kind::Float);
        let bytes = Tensor::f_arange(n, (Kind::Int64, device))?.f_remainder(v)?;
        Ok(Self {
            neurons: [neurons()?, neurons()?, neurons()?],
            mask: neurons()?,
            parts: [random(&[h, n, d], operands)?, random(&[h, n, d], operands)?],
            stream: [stream()?, stream()?, stream()?],
            reciprocals: Tensor::f_ones([n, 1], (Kind::Float, device))?,
            reciprocals_of_heads: Tensor::f_ones([h, n, 1], (Kind::Float, device))?,
            scores: random(&[h * b, t, t], operands)?,
            logits: random(&[n, v], operands)?,
            bytes,
            table: random(&[v, d], Kind::Float)?,
        })
    }

    /// Each operation with what it has to read and write.
    fn calls<'a>(&'a self, shape: &'a Shape) -> Vec<(&'static str, u64, Call<'a>)> {
        let [q, v, dg] = &self.neurons;
        let [part, other] = &self.parts;
        let mask = &self.mask;
        let [x, dx, next] = &self.stream;
        let normed = |y: &Tensor, reciprocals: &Tensor| Normed {
            y: y.shallow_clone(),
            reciprocals: reciprocals.shallow_clone(),
        };
        let (neurons, parts, stream) = (bytes(q), bytes(part), bytes(x));
        let (scores, operand) = (bytes(&self.scores), bytes(part) / shape.heads as u64);
        let drops = || Drops { rule: Dropout::new(PROBABILITY, 1, 1), layer: 0 };
        vec![
            ("rope", 2 * neurons, Box::new(move |by| by.rope(shape, q).map(drop))),
            (
                "rope_backward",
                4 * neurons,
                Box::new(move |by| {
                    by.rope_backward(shape, q, v.shallow_clone(), dg.shallow_clone()).map(drop)
                }),
            ),
            ("gate", 3 * neurons, Box::new(move |by| by.gate(shape, q, v, drops()).map(drop))),
            (
                "gate_backward",
                6 * neurons,
                Box::new(move |by| {
                    let (v, dg) = (v.shallow_clone(), dg.shallow_clone());
                    by.gate_backward(shape, q, v, dg, Some(mask), drops()).map(drop)
                }),
            ),
            ("layer_norm", 2 * parts, Box::new(move |by| by.layer_norm(part).map(drop))),
            (
                "layer_norm_backward",
                3 * parts,
                Box::new(move |by| {
                    let y = normed(part, &self.reciprocals_of_heads);
                    by.layer_norm_backward(&y, other.shallow_clone()).map(drop)
                }),
            ),
            (
                "embed",
                stream + operand,
                Box::new(move |by| by.embed(&self.table, &self.bytes, part.kind()).map(drop)),
            ),
            (
                "embed_backward",
                3 * stream,
                Box::new(move |by| {
                    by.embed_backward(&normed(x, &self.reciprocals), dx.shallow_clone()).map(drop)
                }),
            ),
            ("residual", parts + 3 * stream + operand, Box::new(move |by| by.residual(x, part).map(drop))),
            (
                "residual_backward",
                4 * stream + operand,
                Box::new(move |by| {
                    let residual = Residual {
                        y: normed(x, &self.reciprocals),
                        next: normed(next, &self.reciprocals),
                        operand: part.f_select(0, 0)?,
                    };
                    by.residual_backward(&residual, dx.shallow_clone()).map(drop)
                }),
            ),
            (
                "add_heads",
                2 * parts + 2 * stream,
                Box::new(move |by| by.add_heads(dx.shallow_clone(), [part, other]).map(drop)),
            ),
            (
                "cross_entropy",
                2 * bytes(&self.logits),
                Box::new(move |by| {
                    let logits = self.logits.shallow_clone();
                    by.cross_entropy(logits, &self.bytes, 1e-3).map(drop)
                }),
            ),
            // Of the half that is read or cleared.
            (
                "below_diagonal",
                scores / 2,
                Box::new(move |by| by.below_diagonal(self.scores.shallow_clone()).map(drop)),
            ),
            ("mirror", scores, Box::new(move |by| by.mirror(self.scores.shallow_clone()).map(drop))),
        ]
    }
}

fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}
