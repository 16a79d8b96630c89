//! The recurrent form of BDH on libtorch's devices: the next bytes of many streams at once.
//!
//! The same as the engine of `hatchery-bdh` computes on a processor, with its window of two chunks: a byte sees the chunk before
//! its own, and what came before it in its own. Of each stream the turned neurons r and the inputs x of those bytes are kept, in
//! a ring: a byte reads them all, and weights are read once for all streams. An NVIDIA GPU asked for one byte is busy with
//! starting; asked for a byte of each of dozens of streams, it takes hardly longer.
//!
//! Letters as in the paper: D width, H heads, M neurons per head, V bytes known; K streams, N bytes of each, C bytes in a chunk,
//! R = 2 C places in a ring.
#![allow(clippy::many_single_char_names, reason = "the paper's letters say more than words would")]

mod ring;

use std::rc::Rc;

use hatchery_common::{model::ModelConfig, recipe::Precision};
use hatchery_trainer_shim::kernels::{Kernels, Streams};
use tch::{Device, Kind, TchError, Tensor, no_grad_guard};

use self::ring::{Memory, Ring};
use crate::{
    data::upload,
    fused::pointwise::{Drops, PointwiseOps},
    fused::{self, Shape},
    weights::Weights,
};

/// The kernels may differ from libtorch's operations by so much of the largest logit, in f32 and in bf16.
const APART_MAX: [f64; 2] = [1e-3, 0.1];

/// A model, and what it remembers of each stream.
#[derive(Debug)]
pub struct Recurrent {
    config: ModelConfig,
    device: Device,
    /// Of products' operands; all else is f32.
    operands: Kind,
    embed: Tensor,
    /// H x D x M.
    encoder: Tensor,
    /// H x D x M.
    encoder_v: Tensor,
    /// H x M x D.
    decoder: Tensor,
    /// D x V.
    lm_head: Tensor,
    chunk: i64,
    memories: Vec<Memory>,
    pointwise: Box<dyn PointwiseOps>,
    ring: Box<dyn Ring>,
}

impl Recurrent {
    /// A `model` with room for so many `streams`, whose bytes see back over chunks of `chunk_bytes`.
    pub fn new(
        config: &ModelConfig,
        weights: &Weights,
        device: Device,
        precision: Precision,
        chunk_bytes: u32,
        streams: usize,
    ) -> Result<Self, TchError> {
        let _guard = no_grad_guard();
        let operands = if precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float };
        let [h, d, m] = [config.heads(), config.width(), config.neurons_per_head()].map(|n| n as i64);
        let (chunk, streams) = (i64::from(chunk_bytes.max(1)), streams as i64);
        let zeros = |size: &[i64]| Tensor::f_zeros(size, (operands, device));
        let memory = |_| {
            let keys = zeros(&[streams, h, 2 * chunk, m])?;
            Ok::<_, TchError>(Memory { keys, values: zeros(&[streams, 2 * chunk, d])? })
        };
        let operand = |weight: &Tensor| weight.f_detach()?.f_to_device(device)?.f_to_kind(operands);
        Ok(Self {
            embed: weights.embed.f_detach()?.f_to_device(device)?,
            encoder: operand(&weights.encoder)?,
            encoder_v: operand(&weights.encoder_v)?,
            decoder: operand(&weights.decoder)?.f_view_([h, m, d])?,
            lm_head: operand(&weights.lm_head)?,
            memories: (0..config.layers()).map(memory).collect::<Result<_, _>>()?,
            pointwise: fused::plain(config, device)?,
            ring: Box::new(ring::Plain::new(config.neurons_per_head(), device)?),
            config: config.clone(),
            device,
            operands,
            chunk,
        })
    }

    /// Has the passes between the products done by `kernels` from now on.
    pub fn use_kernels(&mut self, kernels: &Rc<Kernels>) -> Result<(), TchError> {
        let neurons = self.config.neurons_per_head();
        self.ring = Box::new(ring::ByKernels::new(Rc::clone(kernels), neurons, self.device)?);
        self.pointwise = fused::by_kernels(Rc::clone(kernels), &self.config, self.device)?;
        Ok(())
    }

    /// The same, if the kernels find the logits that libtorch's operations find; else says so, and goes on without. To be called
    /// before the first byte; needs two streams.
    pub fn use_kernels_if_right(&mut self, kernels: &Rc<Kernels>) -> Result<Result<(), String>, TchError> {
        let expected = self.sample()?;
        self.use_kernels(kernels)?;
        let found = self.sample();
        let most = expected.iter().fold(0_f32, |most, logit| most.max(logit.abs()));
        let share = APART_MAX[usize::from(self.operands == Kind::BFloat16)] as f32;
        let is_near = |(found, expected): (&f32, &f32)| (found - expected).abs() <= share * most;
        let problem = match found {
            Ok(found) if found.iter().zip(&expected).all(is_near) => return Ok(Ok(())),
            Ok(_) => "the kernels' results differ from libtorch's on this device".to_owned(),
            Err(error) => error.to_string(),
        };
        self.pointwise = fused::plain(&self.config, self.device)?;
        self.ring = Box::new(ring::Plain::new(self.config.neurons_per_head(), self.device)?);
        Ok(Err(problem))
    }

    /// Logits after some bytes, alone and side by side, from the end of one chunk into the next; forgets them again.
    fn sample(&mut self) -> Result<Vec<f32>, TchError> {
        const BYTES: u64 = 24;
        // Once around the ring.
        let start = (3 * self.chunk as u64).saturating_sub(BYTES);
        let part = self.bytes_at_once(start);
        let bytes: Vec<u8> = (0..2 * part as u8).map(|index| b'a' + index % 26).collect();
        let mut logits = self.feed(1, &[start], &bytes[..part])?;
        self.copy(1, 0)?;
        for (pair, position) in bytes.as_chunks::<2>().0.iter().zip(start + part as u64..) {
            logits.extend(self.feed(0, &[position + 1, position], pair)?);
        }
        self.clear(0)?;
        self.clear(1)?;
        Ok(logits)
    }

    /// The kind of products' operands.
    pub fn operands(&self) -> Kind {
        self.operands
    }

    /// Bytes that a stream takes of the device's memory.
    pub fn stream_bytes(config: &ModelConfig, precision: Precision, chunk_bytes: u32) -> u64 {
        let number = if precision == Precision::Bf16 { 2 } else { 4 };
        let place = config.heads() * config.neurons_per_head() + config.width();
        (config.layers() * place * number) as u64 * 2 * u64::from(chunk_bytes.max(1))
    }

    /// Bytes that a model takes beside its streams, at most: its weights twice, and what a chunk of a prompt takes on its way through a
    /// layer.
    pub fn held_bytes(config: &ModelConfig, chunk_bytes: u32) -> u64 {
        const NUMBER_BYTES: u64 = 4;
        let [heads, width, neurons] =
            [config.heads(), config.width(), config.neurons_per_head()].map(|size| size as u64);
        let chunk = u64::from(chunk_bytes.max(1));
        let of_chunk = heads * chunk * (5 * neurons + 4 * chunk + 3 * width);
        NUMBER_BYTES * (2 * config.parameters() + of_chunk)
    }

    /// Most bytes of one stream that [`Self::feed`] takes at once from `position` on: to the end of its chunk.
    pub fn bytes_at_once(&self, position: u64) -> usize {
        (self.chunk as u64 - position % self.chunk as u64) as usize
    }

    /// Forgets all that stream `index` was fed.
    pub fn clear(&mut self, index: usize) -> Result<(), TchError> {
        let _guard = no_grad_guard();
        for Memory { keys, values } in &self.memories {
            for tensor in [keys, values] {
                let _ = tensor.f_narrow(0, index as i64, 1)?.f_zero_()?;
            }
        }
        Ok(())
    }

    /// Lets stream `to` remember what stream `from` does.
    pub fn copy(&mut self, from: usize, to: usize) -> Result<(), TchError> {
        let _guard = no_grad_guard();
        for Memory { keys, values } in &self.memories {
            for tensor in [keys, values] {
                let source = tensor.f_narrow(0, from as i64, 1)?;
                tensor.f_narrow(0, to as i64, 1)?.f_copy_(&source)?;
            }
        }
        Ok(())
    }

    /// Feeds streams `first`, `first` + 1 and so on the next bytes of each, stream after stream in `bytes`, of which the first
    /// ones stand at `positions`. All get equally many, and no more than [`Self::bytes_at_once`]. Gives the logits after the
    /// last byte of each, K x V f32 on the CPU, stream after stream.
    pub fn feed(&mut self, first: usize, positions: &[u64], bytes: &[u8]) -> Result<Vec<f32>, TchError> {
        let _guard = no_grad_guard();
        let (k, n) = (positions.len() as i64, (bytes.len() / positions.len().max(1)) as i64);
        if n == 0 || k * n != bytes.len() as i64 {
            return Err(TchError::Shape(format!("{} bytes for {k} streams", bytes.len())));
        }
        // One small copy to the device for both.
        let numbers: Vec<i64> =
            positions.iter().map(|at| *at as i64).chain(bytes.iter().map(|b| i64::from(*b))).collect();
        let numbers = upload(&Tensor::f_from_slice(&numbers)?, self.device)?;
        let positions = numbers.f_narrow(0, 0, k)?;
        let shape = Shape {
            layers: self.config.layers(),
            heads: self.config.heads() as i64,
            width: self.config.width() as i64,
            neurons: self.config.neurons_per_head() as i64,
            vocabulary: self.config.vocabulary() as i64,
            sequences: k,
            tokens: n,
        };
        let bytes = numbers.f_narrow(0, k, k * n)?;
        let (start, mut operand) = self.pointwise.embed(&self.embed, &bytes, self.operands)?;
        let mut x = start.y;
        for memory in &self.memories {
            let of_streams = |tensor: &Tensor| tensor.f_narrow(0, first as i64, k);
            let mut memory = Memory { keys: of_streams(&memory.keys)?, values: of_streams(&memory.values)? };
            (x, operand) = self.layer(&mut memory, &shape, &positions, &x, &operand)?;
        }
        let last = operand.f_view_([k, n, shape.width])?.f_select(1, n - 1)?;
        let logits = last.f_matmul(&self.lm_head)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
        Vec::try_from(logits.f_flatten(0, -1)?)
    }

    /// One layer: the residual stream after it, K*N x D, and the same as an operand, from those before it.
    fn layer(
        &self,
        memory: &mut Memory,
        shape: &Shape,
        positions: &Tensor,
        x: &Tensor,
        operand: &Tensor,
    ) -> Result<(Tensor, Tensor), TchError> {
        let Shape { heads: h, width: d, neurons: m, sequences: k, tokens: n, .. } = *shape;
        let (pointwise, rows) = (&self.pointwise, k * n);
        let streams = Streams { heads: h, count: k, tokens: n, chunk: self.chunk };
        // q = relu(x E), r = rope(q)
        let of_heads = operand.f_unsqueeze(0)?.f_expand([h, rows, d], false)?;
        let q = pointwise.rectified(of_heads.f_bmm(&self.encoder)?)?;
        let r = self.ring.remember(streams, [&q, operand], positions, memory)?;
        // a = norm((r keys^T, where seen) values), K x H*N x D, then H x K*N x D
        let keys = memory.keys.f_view_([k * h, 2 * self.chunk, m])?;
        let scores = r.f_view_([k * h, n, m])?.f_bmm(&keys.f_transpose(1, 2)?)?;
        let scores = self.ring.seen(streams, scores, positions)?.f_view_([k, h * n, 2 * self.chunk])?;
        let a = pointwise.layer_norm(&scores.f_bmm(&memory.values)?)?.y;
        let a = a.f_view_([k, h, n, d])?.f_transpose(0, 1)?.f_reshape([h, rows, d])?;
        // v = relu(a E_v), x = norm(x + norm((q v) D))
        let v = pointwise.rectified(a.f_bmm(&self.encoder_v)?)?;
        let (g, _) = pointwise.gate(shape, &q, &v, Drops { rule: None, layer: 0 })?;
        let residual = pointwise.residual(x, &g.f_bmm(&self.decoder)?)?;
        Ok((residual.next.y, residual.operand))
    }
}
