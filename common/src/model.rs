//! The shape of a BDH model: the six public fields of `config.json`, checked, and what follows from them.

use serde::{Deserialize, Serialize};

use crate::field::{FieldError, check_range};

/// The six fields as they stand in `config.json` and in a recipe's `[model]`, not yet checked.
///
/// Missing fields take the published defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RawModelConfig {
    /// Number of layers; all share one set of weights.
    pub n_layer: u32,
    /// Width of the residual stream (D).
    pub n_embd: u32,
    /// Dropout of gated activations in training, from 0 to below 1.
    pub dropout: f64,
    /// Number of heads (H).
    pub n_head: u32,
    /// Neurons in all heads together, as a multiple of D.
    pub mlp_internal_dim_multiplier: u32,
    /// Vocabulary size; 256 for bytes.
    pub vocab_size: u32,
}

impl Default for RawModelConfig {
    fn default() -> Self {
        Self {
            n_layer: 6,
            n_embd: 256,
            dropout: 0.1,
            n_head: 4,
            mlp_internal_dim_multiplier: 128,
            vocab_size: 256,
        }
    }
}

/// A checked BDH shape. D = `n_embd`, H = `n_head`, M = D * multiplier / H neurons per head, V = `vocab_size`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawModelConfig", into = "RawModelConfig")]
pub struct ModelConfig(RawModelConfig);

impl ModelConfig {
    /// Most layers.
    pub const LAYERS_MAX: u32 = 256;
    /// Widest residual stream.
    pub const WIDTH_MAX: u32 = 16_384;
    /// Most parameters that a checkpoint may have: 32 GiB of f32.
    pub const PARAMETERS_MAX: u64 = 1 << 33;

    /// Checks every field; the error names the first wrong one.
    pub fn new(raw: RawModelConfig) -> Result<Self, FieldError> {
        check_range("n_layer", raw.n_layer, 1, Self::LAYERS_MAX)?;
        check_range("n_embd", raw.n_embd, 1, Self::WIDTH_MAX)?;
        check_range("n_head", raw.n_head, 1, raw.n_embd)?;
        check_range("mlp_internal_dim_multiplier", raw.mlp_internal_dim_multiplier, 1, Self::WIDTH_MAX)?;
        check_range("vocab_size", raw.vocab_size, 256, 1 << 20)?;
        if !(0.0..1.0).contains(&raw.dropout) {
            return Err(FieldError::new(
                "dropout",
                format!("must be at least 0 and below 1, not {}", raw.dropout),
            ));
        }
        if !raw.n_embd.is_multiple_of(raw.n_head) {
            return Err(FieldError::new(
                "n_embd",
                format!("{} is not divisible by n_head = {}", raw.n_embd, raw.n_head),
            ));
        }
        let config = Self(raw);
        let neurons = config.neurons_per_head();
        if !neurons.is_multiple_of(2) {
            return Err(FieldError::new(
                "mlp_internal_dim_multiplier",
                format!(
                    "gives n_embd * multiplier / n_head = {neurons} neurons per head, which must be even \
                     because rotary embeddings work on pairs"
                ),
            ));
        }
        if config.parameters() > Self::PARAMETERS_MAX {
            return Err(FieldError::new(
                "n_embd",
                format!(
                    "gives a model of {} parameters, more than the limit of {}",
                    config.parameters(),
                    Self::PARAMETERS_MAX
                ),
            ));
        }
        Ok(config)
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        self.0.n_layer as usize
    }

    /// D, the width of the residual stream.
    pub fn width(&self) -> usize {
        self.0.n_embd as usize
    }

    /// H, the heads.
    pub fn heads(&self) -> usize {
        self.0.n_head as usize
    }

    /// M = D * multiplier / H, the neurons of one head.
    pub fn neurons_per_head(&self) -> usize {
        self.width() * self.0.mlp_internal_dim_multiplier as usize / self.heads()
    }

    /// V, the tokens.
    pub fn vocabulary(&self) -> usize {
        self.0.vocab_size as usize
    }

    /// Share of gated activations dropped in training.
    pub fn dropout(&self) -> f64 {
        self.0.dropout
    }

    /// The public fields, as they are written to `config.json`.
    pub fn raw(&self) -> &RawModelConfig {
        &self.0
    }

    /// Numbers in the five weights together.
    pub fn parameters(&self) -> u64 {
        self.weights().iter().map(|(_, shape)| shape.iter().map(|n| *n as u64).product::<u64>()).sum()
    }

    /// The five weights under their public names, with shapes.
    pub fn weights(&self) -> [(&'static str, Vec<usize>); 5] {
        let (d, h, m, v) = (self.width(), self.heads(), self.neurons_per_head(), self.vocabulary());
        [
            ("embed.weight", vec![v, d]),
            ("encoder", vec![h, d, m]),
            ("encoder_v", vec![h, d, m]),
            ("decoder", vec![h * m, d]),
            ("lm_head", vec![d, v]),
        ]
    }

    /// Floating-point operations of one training step over `batch` sequences of `block` tokens: matrix
    /// products only, two operations for each multiply-add, backward counted as twice the forward.
    #[expect(clippy::many_single_char_names, reason = "the model's own letters")]
    pub fn flops_per_step(&self, batch: u32, block: u32) -> f64 {
        let (d, h, m, v) = (
            self.width() as f64,
            self.heads() as f64,
            self.neurons_per_head() as f64,
            self.vocabulary() as f64,
        );
        let (b, t) = (f64::from(batch), f64::from(block));
        let projections = 3.0 * 2.0 * b * t * d * m * h;
        let attention = 2.0 * b * h * t * t * (m + d);
        let readout = 2.0 * b * t * d * v;
        3.0 * (self.layers() as f64 * (projections + attention) + readout)
    }

    /// The least memory that training needs, in bytes: weights, gradients and two moments in f32, and of each layer the
    /// neurons and a few rows of the width for `sequences` sequences of `block` tokens. At the reference shape (batch 8,
    /// block 256) this says 337 MiB, where the CPU's own path peaks at 389 MiB and eager PyTorch on CUDA at 1,249 MiB.
    pub fn memory_bytes_least(&self, sequences: u32, block: u32) -> u64 {
        let neurons = self.heads() as u64 * self.neurons_per_head() as u64;
        let tokens = u64::from(sequences) * u64::from(block);
        let kept_per_token = self.layers() as u64 * (neurons + 8 * self.width() as u64);
        4 * (4 * self.parameters() + tokens * kept_per_token)
    }
}

impl TryFrom<RawModelConfig> for ModelConfig {
    type Error = FieldError;

    fn try_from(raw: RawModelConfig) -> Result<Self, FieldError> {
        Self::new(raw)
    }
}

impl From<ModelConfig> for RawModelConfig {
    fn from(config: ModelConfig) -> Self {
        config.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> RawModelConfig {
        RawModelConfig { n_layer: 4, n_embd: 128, mlp_internal_dim_multiplier: 64, ..Default::default() }
    }

    #[test]
    fn the_reference_shape_has_its_published_figures() {
        let config = ModelConfig::new(seed()).unwrap();
        assert_eq!(config.parameters(), 3_211_264);
        assert!((config.flops_per_step(8, 256) / 264.5e9 - 1.0).abs() < 0.001);
    }

    #[test]
    fn wrong_shapes_name_the_field() {
        let cases: [(RawModelConfig, &str); 6] = [
            (RawModelConfig { n_embd: 130, ..seed() }, "n_embd"),
            (RawModelConfig { n_layer: 0, ..seed() }, "n_layer"),
            (
                RawModelConfig { n_embd: 3, n_head: 1, mlp_internal_dim_multiplier: 1, ..seed() },
                "mlp_internal_dim_multiplier",
            ),
            (RawModelConfig { dropout: f64::NAN, ..seed() }, "dropout"),
            (RawModelConfig { n_embd: 16_384, mlp_internal_dim_multiplier: 16_384, ..seed() }, "n_embd"),
            (RawModelConfig { vocab_size: 10, ..seed() }, "vocab_size"),
        ];
        for (raw, field) in cases {
            assert_eq!(ModelConfig::new(raw).unwrap_err().field, field);
        }
    }
}
