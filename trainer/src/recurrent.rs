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

use hatchery_common::{model::ModelConfig, recipe::Precision};
use tch::{Device, Kind, TchError, Tensor, no_grad_guard};

use crate::{
    data::upload,
    model::{NORM_EPSILON, THETA},
    weights::Weights,
};

/// What a layer remembers.
#[derive(Debug)]
struct Memory {
    /// r of each place, K x H x R x M.
    keys: Tensor,
    /// x of each place, K x R x D.
    values: Tensor,
}

/// Where the bytes at hand stand, the same in every layer.
struct Places {
    /// In the ring, K x 1 x N x 1.
    of_ring: Tensor,
    /// 1 where a byte sees a place of the ring, else 0: K x 1 x N x R.
    is_seen: Tensor,
    /// Of each pair's phase, K x 1 x N x M/2.
    cos: Tensor,
    sin: Tensor,
}

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
    /// Turns a byte of each pair, M/2 f64.
    frequencies: Tensor,
    chunk: i64,
    layers: Vec<Memory>,
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
        let chunk = i64::from(chunk_bytes.max(1));
        let zeros = |size: &[i64], kind| Tensor::f_zeros(size, (kind, device));
        let streams = streams as i64;
        let layer = |_| {
            let keys = zeros(&[streams, h, 2 * chunk, m], operands)?;
            Ok::<_, TchError>(Memory { keys, values: zeros(&[streams, 2 * chunk, d], operands)? })
        };
        let operand = |weight: &Tensor| weight.f_detach()?.f_to_device(device)?.f_to_kind(operands);
        let exponents =
            Tensor::f_arange(m / 2, (Kind::Double, Device::Cpu))?.f_mul_scalar(-2.0 / m as f64)?;
        let turns = Tensor::f_pow_scalar(THETA, &exponents)?.f_div_scalar(std::f64::consts::TAU)?;
        Ok(Self {
            embed: weights.embed.f_detach()?.f_to_device(device)?,
            encoder: operand(&weights.encoder)?,
            encoder_v: operand(&weights.encoder_v)?,
            decoder: operand(&weights.decoder)?.f_view_([h, m, d])?,
            lm_head: operand(&weights.lm_head)?,
            frequencies: turns.f_to_device(device)?,
            layers: (0..config.layers()).map(layer).collect::<Result<_, _>>()?,
            config: config.clone(),
            device,
            operands,
            chunk,
        })
    }

    /// Bytes that a stream takes of the device's memory.
    pub fn stream_bytes(config: &ModelConfig, precision: Precision, chunk_bytes: u32) -> u64 {
        let number = if precision == Precision::Bf16 { 2 } else { 4 };
        let place = config.heads() * config.neurons_per_head() + config.width();
        (config.layers() * place * number) as u64 * 2 * u64::from(chunk_bytes.max(1))
    }

    /// Most bytes of one stream that [`Self::feed`] takes at once from `position` on: to the end of its chunk.
    pub fn bytes_at_once(&self, position: u64) -> usize {
        (self.chunk as u64 - position % self.chunk as u64) as usize
    }

    /// Forgets all that stream `index` was fed.
    pub fn clear(&mut self, index: usize) -> Result<(), TchError> {
        let _guard = no_grad_guard();
        for Memory { keys, values } in &self.layers {
            for tensor in [keys, values] {
                let _ = tensor.f_narrow(0, index as i64, 1)?.f_zero_()?;
            }
        }
        Ok(())
    }

    /// Lets stream `to` remember what stream `from` does.
    pub fn copy(&mut self, from: usize, to: usize) -> Result<(), TchError> {
        let _guard = no_grad_guard();
        for Memory { keys, values } in &self.layers {
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
        let places = self.places(&numbers.f_narrow(0, 0, k)?, n)?;
        let mut x = norm(&self.embed.f_index_select(0, &numbers.f_narrow(0, k, k * n)?)?)?; // K*N x D
        for layer in &self.layers {
            x = self.layer(layer, first as i64, [k, n], &places, &x)?;
        }
        let last = x.f_view_([k, n, -1])?.f_select(1, n - 1)?.f_to_kind(self.operands)?;
        let logits = last.f_matmul(&self.lm_head)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
        Vec::try_from(logits.f_flatten(0, -1)?)
    }

    /// One layer: the residual stream before it and after it, K*N x D.
    fn layer(
        &self,
        memory: &Memory,
        first: i64,
        [k, n]: [i64; 2],
        places: &Places,
        x: &Tensor,
    ) -> Result<Tensor, TchError> {
        let [h, d, m] = [self.config.heads(), self.config.width(), self.config.neurons_per_head()]
            .map(|size| size as i64);
        let ring = 2 * self.chunk;
        let input = x.f_to_kind(self.operands)?;
        // q = relu(x E), H x K*N x M; r = rope(q), K x H x N x M
        let q = input.f_unsqueeze(0)?.f_expand([h, k * n, d], false)?.f_bmm(&self.encoder)?.f_relu()?;
        let r = places.turned(&q.f_view_([h, k, n, m])?.f_transpose(0, 1)?)?.f_to_kind(self.operands)?;
        let of_streams = |tensor: &Tensor| tensor.f_narrow(0, first, k);
        let (keys, values) = (of_streams(&memory.keys)?, of_streams(&memory.values)?);
        let place = places.of_ring.f_expand([k, h, n, m], false)?;
        let _ = keys.shallow_clone().f_scatter_(2, &place, &r)?;
        let place = places.of_ring.f_squeeze_dim(1)?.f_expand([k, n, d], false)?;
        let _ = values.shallow_clone().f_scatter_(1, &place, &input.f_view_([k, n, d])?)?;
        // a = norm((r keys^T, where seen) values), K x H*N x D, then H x K*N x D
        let keys = keys.f_view_([k * h, ring, m])?;
        let scores = r.f_view_([k * h, n, m])?.f_bmm(&keys.f_transpose(1, 2)?)?.f_view_([k, h, n, ring])?;
        let scores = scores.f_mul(&places.is_seen)?.f_view_([k, h * n, ring])?;
        let a = norm(&scores.f_bmm(&values)?.f_to_kind(Kind::Float)?)?.f_view_([k, h, n, d])?;
        let a = a.f_transpose(0, 1)?.f_to_kind(self.operands)?.f_reshape([h, k * n, d])?;
        // g = q relu(a E_v), x = norm(x + norm(g D))
        let g = a.f_bmm(&self.encoder_v)?.f_relu()?.f_mul(&q)?;
        let y = g.f_bmm(&self.decoder)?.f_sum_dim_intlist(0, false, Kind::Float)?;
        norm(&x.f_add(&norm(&y)?)?)
    }

    /// Of `n` bytes of each stream, the first of which stand at `positions`, K.
    fn places(&self, positions: &Tensor, n: i64) -> Result<Places, TchError> {
        let on_device = (Kind::Int64, self.device);
        let ring = 2 * self.chunk;
        let k = positions.size()[0];
        let here =
            positions.f_unsqueeze(1)?.f_add(&Tensor::f_arange(n, on_device)?)?.f_view_([k, 1, n, 1])?;
        // A place holds the newest byte that belongs there; of those before the first byte there are none.
        let newest = positions.f_add_scalar(n - 1)?.f_view_([k, 1, 1, 1])?;
        let held = newest.f_sub(&newest.f_sub(&Tensor::f_arange(ring, on_device)?)?.f_remainder(ring)?)?;
        let oldest =
            here.f_div_scalar_mode(self.chunk, "floor")?.f_sub_scalar(1)?.f_mul_scalar(self.chunk)?;
        let oldest = oldest.f_clamp_min(0)?;
        let is_seen = held.f_lt_tensor(&here)?.f_logical_and(&held.f_ge_tensor(&oldest)?)?;
        let turns = here.f_to_kind(Kind::Double)?.f_mul(&self.frequencies)?.f_remainder(1.0)?;
        let angles = turns.f_mul_scalar(std::f64::consts::TAU)?;
        Ok(Places {
            of_ring: here.f_remainder(ring)?,
            is_seen: is_seen.f_to_kind(self.operands)?,
            cos: angles.f_cos()?.f_to_kind(Kind::Float)?,
            sin: angles.f_sin()?.f_to_kind(Kind::Float)?,
        })
    }
}

impl Places {
    /// rope(q), K x H x N x M f32.
    fn turned(&self, q: &Tensor) -> Result<Tensor, TchError> {
        let pairs = q.f_unflatten(-1, [-1, 2])?;
        let (a, b) = (pairs.f_select(-1, 0)?, pairs.f_select(-1, 1)?);
        let turned = [
            a.f_mul(&self.cos)?.f_sub(&b.f_mul(&self.sin)?)?,
            b.f_mul(&self.cos)?.f_add(&a.f_mul(&self.sin)?)?,
        ];
        Tensor::f_stack(&turned, -1)?.f_flatten(-2, -1)
    }
}

/// LayerNorm over the last dimension, without affine.
fn norm(x: &Tensor) -> Result<Tensor, TchError> {
    let width = x.size().last().copied().unwrap_or_default();
    x.f_layer_norm::<Tensor>([width], None, None, NORM_EPSILON, true)
}
