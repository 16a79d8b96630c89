//! What layers remember of streams, and how bytes are put into it and read it: by libtorch's operations on any device, or by kernels
//! on an NVIDIA GPU, to which each operation costs more than its work.

use std::{fmt, rc::Rc};

use hatchery_trainer_shim::kernels::{Kernels, Streams};
use tch::{Device, Kind, TchError, Tensor};

use crate::model::THETA;

/// What a layer remembers of some streams, in a place of a ring for each of the last R bytes.
#[derive(Debug)]
pub(super) struct Memory {
    /// r of each place, K x H x R x M.
    pub(super) keys: Tensor,
    /// x of each place, K x R x D.
    pub(super) values: Tensor,
}

/// The operations on such memories. `positions` are those of the first byte of each stream, K i64.
pub(super) trait Ring: fmt::Debug {
    /// Remembers r = rope(q) and x of new bytes, and gives r, K x H x N x M; q is H x K*N x M and rectified at the latest where it is
    /// read, x K*N x D.
    fn remember(
        &self,
        streams: Streams,
        q_and_x: [&Tensor; 2],
        positions: &Tensor,
        memory: &mut Memory,
    ) -> Result<Tensor, TchError>;

    /// The scores, K*H x N x R, without those of bytes that are not seen.
    fn seen(&self, streams: Streams, scores: Tensor, positions: &Tensor) -> Result<Tensor, TchError>;
}

#[derive(Debug)]
pub(super) struct Plain {
    /// Turns a byte of each pair, M/2 f64.
    frequencies: Tensor,
}

impl Plain {
    pub(super) fn new(neurons: usize, device: Device) -> Result<Self, TchError> {
        Ok(Self { frequencies: turns_per_byte(neurons)?.f_to_device(device)? })
    }
}

/// Of each pair, M/2 f64 on the CPU.
fn turns_per_byte(neurons: usize) -> Result<Tensor, TchError> {
    let pairs = Tensor::f_arange(neurons as i64 / 2, (Kind::Double, Device::Cpu))?;
    let exponents = pairs.f_mul_scalar(-2.0 / neurons as f64)?;
    Tensor::f_pow_scalar(THETA, &exponents)?.f_div_scalar(std::f64::consts::TAU)
}

/// The position of each byte, K x 1 x N x 1.
fn of_bytes(Streams { count, tokens, .. }: Streams, positions: &Tensor) -> Result<Tensor, TchError> {
    let after = Tensor::f_arange(tokens, (Kind::Int64, positions.device()))?;
    positions.f_unsqueeze(1)?.f_add(&after)?.f_view_([count, 1, tokens, 1])
}

impl Ring for Plain {
    fn remember(
        &self,
        streams: Streams,
        [q, x]: [&Tensor; 2],
        positions: &Tensor,
        memory: &mut Memory,
    ) -> Result<Tensor, TchError> {
        let Streams { heads: h, count: k, tokens: n, chunk } = streams;
        let (m, d) = (q.size3()?.2, x.size2()?.1);
        let here = of_bytes(streams, positions)?;
        let turns = here.f_to_kind(Kind::Double)?.f_mul(&self.frequencies)?.f_remainder(1.0)?;
        let angles = turns.f_mul_scalar(std::f64::consts::TAU)?;
        let (cos, sin) = (angles.f_cos()?.f_to_kind(Kind::Float)?, angles.f_sin()?.f_to_kind(Kind::Float)?);
        let pairs = q.f_view_([h, k, n, m])?.f_transpose(0, 1)?.f_unflatten(-1, [-1, 2])?;
        let (a, b) = (pairs.f_select(-1, 0)?, pairs.f_select(-1, 1)?);
        let turned = [a.f_mul(&cos)?.f_sub(&b.f_mul(&sin)?)?, b.f_mul(&cos)?.f_add(&a.f_mul(&sin)?)?];
        let r = Tensor::f_stack(&turned, -1)?.f_flatten(-2, -1)?.f_to_kind(q.kind())?;
        let place = here.f_remainder(2 * chunk)?;
        let of_keys = place.f_expand([k, h, n, m], false)?;
        let _ = memory.keys.f_scatter_(2, &of_keys, &r)?;
        let of_values = place.f_squeeze_dim(1)?.f_expand([k, n, d], false)?;
        let _ = memory.values.f_scatter_(1, &of_values, &x.f_view_([k, n, d])?)?;
        Ok(r)
    }

    fn seen(&self, streams: Streams, scores: Tensor, positions: &Tensor) -> Result<Tensor, TchError> {
        let Streams { heads: h, count: k, tokens: n, chunk } = streams;
        let (here, ring) = (of_bytes(streams, positions)?, 2 * chunk);
        // A place holds the newest byte that belongs there; of those before the first byte there are none.
        let newest = positions.f_add_scalar(n - 1)?.f_view_([k, 1, 1, 1])?;
        let places = Tensor::f_arange(ring, (Kind::Int64, scores.device()))?;
        let held = newest.f_sub(&newest.f_sub(&places)?.f_remainder(ring)?)?;
        let oldest = here.f_div_scalar_mode(chunk, "floor")?.f_sub_scalar(1)?.f_mul_scalar(chunk)?;
        let is_seen = held.f_lt_tensor(&here)?.f_logical_and(&held.f_ge_tensor(&oldest.f_clamp_min(0)?)?)?;
        let is_seen = is_seen.f_to_kind(scores.kind())?;
        scores.f_view_([k, h, n, ring])?.f_mul(&is_seen)?.f_view_([k * h, n, ring])
    }
}

#[derive(Debug)]
pub(super) struct ByKernels {
    kernels: Rc<Kernels>,
    /// Turns a byte of each pair, in 2^-64 turns: M/2 i64.
    frequencies: Tensor,
}

impl ByKernels {
    pub(super) fn new(kernels: Rc<Kernels>, neurons: usize, device: Device) -> Result<Self, TchError> {
        let turns = Vec::<f64>::try_from(&turns_per_byte(neurons)?)?;
        let frequencies: Vec<i64> = turns.iter().map(|turns| (turns * 2_f64.powi(64)) as i64).collect();
        Ok(Self { kernels, frequencies: Tensor::f_from_slice(&frequencies)?.f_to_device(device)? })
    }
}

impl Ring for ByKernels {
    fn remember(
        &self,
        streams: Streams,
        [q, x]: [&Tensor; 2],
        positions: &Tensor,
        memory: &mut Memory,
    ) -> Result<Tensor, TchError> {
        let Streams { heads, count, tokens, .. } = streams;
        let mut r = Tensor::f_empty([count, heads, tokens, q.size3()?.2], (q.kind(), q.device()))?;
        let Memory { keys, values } = memory;
        self.kernels.remember(streams, q, [positions, &self.frequencies], &mut r, keys)?;
        self.kernels.remember_values(streams, x, positions, values)?;
        Ok(r)
    }

    fn seen(&self, streams: Streams, scores: Tensor, positions: &Tensor) -> Result<Tensor, TchError> {
        let mut scores = scores;
        self.kernels.unseen(streams, &mut scores, positions)?;
        Ok(scores)
    }
}
