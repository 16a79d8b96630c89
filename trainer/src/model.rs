//! BDH as the paper has it, with libtorch's own derivatives: the plain path, and the oracle for faster ones.
//!
//! Letters as in the paper: B sequences, T tokens, D width, H heads, M neurons per head, V tokens known.
#![allow(clippy::many_single_char_names, reason = "the paper's letters say more than words would")]

use hatchery_common::{model::ModelConfig, recipe::Precision};
use tch::{Device, Kind, Reduction, TchError, Tensor};

use crate::{dropout::Dropout, weights::Weights};

/// The base of the rotary frequencies.
pub(crate) const THETA: f64 = 65_536.0;
/// The term against division by zero in the norms.
pub(crate) const NORM_EPSILON: f64 = 1e-5;

/// Whether a pass learns, and so drops out.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pass {
    /// Dropout as said; none drops nothing.
    Training(Option<Dropout>),
    Reading,
}

/// BDH on one device.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    weights: Weights,
    /// The kind of the matrix products' operands. Weights, norms and loss are f32 in any case.
    ///
    /// Casting by hand, because libtorch's autocast would take fp16 on CUDA, and tch cannot tell it otherwise.
    products: Kind,
    /// The kind of everything else: that of the weights.
    kind: Kind,
    rope: Rope,
}

/// cos and sin of every position's and neuron's phase, T x M each.
#[derive(Debug)]
pub(crate) struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Model {
    /// Places `weights` on `device`, ready for sequences of up to `tokens_max` tokens. Weights are f32; f64 ones give
    /// f64 arithmetic throughout, to check others against.
    pub fn new(
        config: ModelConfig,
        weights: Weights,
        device: Device,
        precision: Precision,
        tokens_max: usize,
    ) -> Result<Self, TchError> {
        let kind = weights.embed.kind();
        let products = if precision == Precision::Bf16 { Kind::BFloat16 } else { kind };
        let rope = Rope::new(config.neurons_per_head(), tokens_max, device, kind)?;
        Ok(Self { weights: weights.trainable_on(device)?, config, products, kind, rope })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The weights, to be changed in place.
    pub fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
    }

    /// The kind of the weights.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.weights.embed.device()
    }

    /// The logits of each next token, (B, T, V) f32, for `tokens`, (B, T) int64.
    pub fn logits(&self, tokens: &Tensor, pass: Pass) -> Result<Tensor, TchError> {
        let (b, t) = tokens.size2()?;
        let (d, h, m) =
            (self.config.width() as i64, self.config.heads() as i64, self.config.neurons_per_head() as i64);
        let operand = |tensor: &Tensor| tensor.f_to_kind(self.products);
        let encoder = operand(&self.weights.encoder)?;
        let encoder_v = operand(&self.weights.encoder_v)?;
        let decoder = operand(&self.weights.decoder)?.f_view_([h, m, d])?;

        // Heads come first, so that a projection is one product for each head over all B*T tokens.
        let mut x = self.norm(&Tensor::f_embedding(
            &self.weights.embed,
            &tokens.f_view_([b * t])?,
            -1,
            false,
            false,
        )?)?;
        for layer in 0..self.config.layers() {
            let v = operand(&x)?;
            let q = v.f_unsqueeze(0)?.f_expand([h, b * t, d], false)?.f_bmm(&encoder)?.f_relu()?; // (H, B*T, M)
            let r = operand(&self.rope.rope(&q.f_view_([h, b, t, m])?)?)?; // (H, B, T, M)
            let scores = r.f_matmul(&r.f_transpose(-2, -1)?)?.f_tril(-1)?; // (H, B, T, T)
            let read = scores.f_matmul(&v.f_view_([b, t, d])?)?; // (H, B, T, D)
            let a = operand(&self.norm(&read)?)?.f_reshape([h, b * t, d])?;
            let gated = q.f_mul(&a.f_bmm(&encoder_v)?.f_relu()?)?; // (H, B*T, M)
            let g = match pass {
                Pass::Training(Some(dropout)) => {
                    let size = [h, b, t, m].map(|n| n as usize);
                    gated.f_mul(&dropout.mask(layer, size, gated.kind(), gated.device())?)?
                }
                _ => gated,
            };
            // concat_heads(g) @ decoder, as a sum over heads.
            let y = g.f_bmm(&decoder)?.f_sum_dim_intlist(0, false, self.kind)?; // (B*T, D)
            x = self.norm(&x.f_add(&self.norm(&y)?)?)?;
        }
        operand(&x)?.f_matmul(&operand(&self.weights.lm_head)?)?.f_to_kind(self.kind)?.f_view_([
            b,
            t,
            self.config.vocabulary() as i64,
        ])
    }

    /// LayerNorm over the last dimension, without affine.
    fn norm(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let width = self.config.width() as i64;
        x.f_to_kind(self.kind)?.f_layer_norm::<Tensor>([width], None, None, NORM_EPSILON, true)
    }

    /// The mean cross-entropy in nats of `targets` after `tokens`, both (B, T) int64: a scalar.
    pub fn loss(&self, tokens: &Tensor, targets: &Tensor, pass: Pass) -> Result<Tensor, TchError> {
        self.cross_entropy(tokens, targets, pass, Reduction::Mean)
    }

    /// The cross-entropy in nats of each target, B*T f32.
    pub fn losses(&self, tokens: &Tensor, targets: &Tensor) -> Result<Tensor, TchError> {
        self.cross_entropy(tokens, targets, Pass::Reading, Reduction::None)
    }

    fn cross_entropy(
        &self,
        tokens: &Tensor,
        targets: &Tensor,
        pass: Pass,
        reduction: Reduction,
    ) -> Result<Tensor, TchError> {
        const IGNORED: i64 = -100; // libtorch's "no such target"; bytes are never negative
        let logits = self.logits(tokens, pass)?.f_flatten(0, 1)?;
        logits.f_cross_entropy_loss::<Tensor>(&targets.f_flatten(0, -1)?, None, reduction, IGNORED, 0.0)
    }
}

impl Rope {
    /// Phases in the weights' kind and in the reference's own order of operations, because at long T the rounding of
    /// t * f shows.
    pub(crate) fn new(neurons: usize, tokens: usize, device: Device, kind: Kind) -> Result<Self, TchError> {
        let on_cpu = (kind, Device::Cpu);
        let pair =
            Tensor::f_arange(neurons as i64, on_cpu)?.f_div_scalar(2.0)?.f_floor()?.f_mul_scalar(2.0)?;
        let exponent = pair.f_div_scalar(neurons as f64)?;
        let frequency =
            Tensor::f_pow_scalar(THETA, &exponent)?.f_reciprocal()?.f_div_scalar(std::f64::consts::TAU)?;
        let position = Tensor::f_arange(tokens as i64, on_cpu)?.f_unsqueeze(-1)?;
        let phase = position.f_mul(&frequency)?.f_remainder(1.0)?.f_mul_scalar(std::f64::consts::TAU)?;
        Ok(Self { cos: phase.f_cos()?.f_to_device(device)?, sin: phase.f_sin()?.f_to_device(device)? })
    }

    /// The cosine and sine of each pair, T x M/2 x 2.
    pub(crate) fn of_pairs(&self) -> Result<Tensor, TchError> {
        let of_even = |phases: &Tensor| phases.f_slice(1, 0, None, 2);
        Tensor::f_stack(&[of_even(&self.cos)?, of_even(&self.sin)?], -1)?.f_contiguous()
    }

    pub(crate) fn cos(&self) -> &Tensor {
        &self.cos
    }

    pub(crate) fn sin(&self) -> &Tensor {
        &self.sin
    }

    /// Turns the interleaved pairs of `q`, (.., T, M), by their phases: (a, b) -> (a cos - b sin, b cos + a sin).
    fn rope(&self, q: &Tensor) -> Result<Tensor, TchError> {
        let size = q.size();
        let t = size[size.len() - 2];
        let pairs = q.f_unflatten(-1, [-1, 2])?;
        let quarter_turned = Tensor::f_stack(&[pairs.f_select(-1, 1)?.f_neg()?, pairs.f_select(-1, 0)?], -1)?;
        let (cos, sin) = (self.cos.f_narrow(0, 0, t)?, self.sin.f_narrow(0, 0, t)?);
        q.f_mul(&cos)?.f_add(&quarter_turned.f_flatten(-2, -1)?.f_mul(&sin)?)
    }
}
