//! The training part of a recipe.

use serde::{Deserialize, Serialize};

use crate::{
    device::DeviceKind,
    field::{FieldError, check_range},
};

/// The arithmetic of the forward and backward pass. Weights and optimizer state are always f32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 on a CUDA device that supports it, f32 elsewhere.
    #[default]
    Auto,
    /// f32 everywhere.
    F32,
    /// bf16 matrix products with f32 norms, loss and weights.
    Bf16,
}

impl Precision {
    /// What `Auto` comes to on `kind` of device; the others stay.
    #[must_use]
    pub fn resolve(self, kind: DeviceKind, bf16_supported: bool) -> Self {
        match self {
            Self::Auto if kind == DeviceKind::Cuda && bf16_supported => Self::Bf16,
            Self::Auto => Self::F32,
            given => given,
        }
    }
}

/// Learning rate schedule after the warm-up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Constant.
    #[default]
    Constant,
    /// Half a cosine wave, down to `lr_min_share` at the last step.
    Cosine,
    /// Warm-up, stable, decay: constant until the last `decay_share` of the steps, then linear down to
    /// `lr_min_share`.
    Wsd,
}

/// A recipe's `[train]` as written, not yet checked. The defaults are those of the preset `tiny`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawTrainSpec {
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences per step.
    pub batch: u32,
    /// Tokens per sequence.
    pub block: u32,
    /// AdamW's peak learning rate.
    pub lr: f64,
    /// Learning rate schedule after the warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up to `lr`; 0: none.
    pub warmup_steps: u64,
    /// Final learning rate as a share of `lr`; for `cosine` and `wsd`.
    pub lr_min_share: f64,
    /// Share of the steps, at the end, in which the rate decays; for `wsd`.
    pub decay_share: f64,
    /// Largest gradient norm over all weights; larger gradients are scaled down to it; 0: off.
    pub clip_norm: f64,
    /// Number of parts into which a GPU splits each batch; the result is the same up to rounding. A CPU always takes
    /// sequences one by one.
    pub accumulate: u32,
    /// AdamW's decoupled weight decay, applied to all weights.
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    pub beta2: f64,
    /// AdamW's term against division by zero.
    pub epsilon: f64,
    /// Seed of the initial weights, the batches and dropout.
    pub seed: u64,
    /// Arithmetic of the forward and backward pass.
    pub precision: Precision,
    /// Steps between checkpoints; the last step always writes one.
    pub checkpoint_every: u64,
    /// Steps between validations; the last step always validates.
    pub validate_every: u64,
    /// Share of the corpus, at its end, held out for validation.
    pub validation_share: f64,
    /// Maximum number of windows of `block` bytes per validation, from the start of the held-out part.
    pub validation_windows: u32,
    /// Decay of the moving average of the weights, which is then validated and served; 0: off.
    pub ema_decay: f64,
    /// Validations in a row without improvement that end the run early; 0: off.
    pub early_stop: u32,
    /// Smallest drop of the validation loss, in nats per byte, that counts as an improvement.
    pub early_stop_min_change: f64,
    /// Whether each new best validation writes a checkpoint.
    pub checkpoint_best: bool,
    /// Steps averaged into one point of the training loss curve.
    pub log_every: u64,
}

impl Default for RawTrainSpec {
    fn default() -> Self {
        Self {
            steps: 300,
            batch: 8,
            block: 128,
            lr: 1e-3,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            lr_min_share: 0.1,
            decay_share: 0.2,
            clip_norm: 0.0,
            accumulate: 1,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            seed: 1,
            precision: Precision::Auto,
            checkpoint_every: 100,
            validate_every: 100,
            validation_share: 0.1,
            validation_windows: 128,
            ema_decay: 0.0,
            early_stop: 0,
            early_stop_min_change: 0.0,
            checkpoint_best: false,
            log_every: 10,
        }
    }
}

/// A checked `[train]`. Read its fields through [`TrainSpec::raw`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawTrainSpec", into = "RawTrainSpec")]
pub struct TrainSpec(RawTrainSpec);

impl TrainSpec {
    /// Most steps.
    pub const STEPS_MAX: u64 = 1_000_000_000;
    /// Most sequences in a step.
    pub const BATCH_MAX: u32 = 65_536;
    /// Longest sequence.
    pub const BLOCK_MAX: u32 = 1 << 20;

    /// Checks every field; the error names the first wrong one.
    pub fn new(raw: RawTrainSpec) -> Result<Self, FieldError> {
        check_range("steps", raw.steps, 1, Self::STEPS_MAX)?;
        check_range("batch", raw.batch, 1, Self::BATCH_MAX)?;
        check_range("block", raw.block, 2, Self::BLOCK_MAX)?;
        if !(raw.lr > 0.0 && raw.lr <= 10.0) {
            return Err(FieldError::new("lr", format!("must be above 0 and at most 10, not {}", raw.lr)));
        }
        check_range("weight_decay", raw.weight_decay, 0.0, 10.0)?;
        for (field, beta) in [("beta1", raw.beta1), ("beta2", raw.beta2), ("ema_decay", raw.ema_decay)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(FieldError::new(field, format!("must be at least 0 and below 1, not {beta}")));
            }
        }
        if !(raw.epsilon > 0.0 && raw.epsilon <= 1.0) {
            return Err(FieldError::new(
                "epsilon",
                format!("must be above 0 and at most 1, not {}", raw.epsilon),
            ));
        }
        check_range("warmup_steps", raw.warmup_steps, 0, Self::STEPS_MAX)?;
        check_range("lr_min_share", raw.lr_min_share, 0.0, 1.0)?;
        check_range("decay_share", raw.decay_share, 0.0, 1.0)?;
        check_range("clip_norm", raw.clip_norm, 0.0, 1e9)?;
        check_range("accumulate", raw.accumulate, 1, raw.batch)?;
        if !raw.batch.is_multiple_of(raw.accumulate) {
            let problem = format!("{} does not divide batch = {}", raw.accumulate, raw.batch);
            return Err(FieldError::new("accumulate", problem));
        }
        check_range("seed", raw.seed, 0, i64::MAX as u64)?;
        check_range("checkpoint_every", raw.checkpoint_every, 1, Self::STEPS_MAX)?;
        check_range("validate_every", raw.validate_every, 1, Self::STEPS_MAX)?;
        check_range("validation_share", raw.validation_share, 0.001, 0.9)?;
        check_range("validation_windows", raw.validation_windows, 1, 1 << 20)?;
        check_range("early_stop_min_change", raw.early_stop_min_change, 0.0, 1e3)?;
        check_range("log_every", raw.log_every, 1, Self::STEPS_MAX)?;
        Ok(Self(raw))
    }

    /// The fields.
    pub fn raw(&self) -> &RawTrainSpec {
        &self.0
    }

    /// The learning rate of step `step`, which counts from 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let raw = &self.0;
        if step < raw.warmup_steps {
            return raw.lr * (step + 1) as f64 / raw.warmup_steps as f64;
        }
        // How far the fall has come, from 0 to 1 at the last step.
        let way = |from: f64| {
            let last = raw.steps.saturating_sub(1) as f64;
            ((step as f64 - from) / (last - from).max(1.0)).clamp(0.0, 1.0)
        };
        let height = match raw.schedule {
            Schedule::Constant => return raw.lr,
            // libm's cosine and not the system's, whose last bit differs between systems.
            Schedule::Cosine => {
                f64::midpoint(1.0, libm::cos(std::f64::consts::PI * way(raw.warmup_steps as f64)))
            }
            Schedule::Wsd => {
                let decay = (raw.steps as f64 * raw.decay_share).round();
                1.0 - way((raw.steps as f64 - 1.0 - decay).max(raw.warmup_steps as f64))
            }
        };
        raw.lr * (raw.lr_min_share + (1.0 - raw.lr_min_share) * height)
    }

    /// What the running mean of the weights keeps of itself at step `step`, which counts from 0.
    ///
    /// At first less than `ema_decay`, (1 + step) / (10 + step), so that the start weights are soon forgotten.
    pub fn ema_decay(&self, step: u64) -> f64 {
        self.0.ema_decay.min((1.0 + step as f64) / (10.0 + step as f64))
    }

    /// Splits a corpus of `corpus_bytes`: the training part's length; the rest validates.
    ///
    /// Each part must hold at least one window and the byte after it; the error names the sizes.
    pub fn split(&self, corpus_bytes: u64) -> Result<u64, FieldError> {
        let window = u64::from(self.0.block) + 1;
        let train_bytes = ((corpus_bytes as f64) * (1.0 - self.0.validation_share)).floor() as u64;
        let validation_bytes = corpus_bytes - train_bytes;
        if train_bytes < window || validation_bytes < window {
            return Err(FieldError::new(
                "data",
                format!(
                    "the corpus has {corpus_bytes} bytes: {train_bytes} for training and \
                     {validation_bytes} for validation, but each part needs at least block + 1 = {window}; \
                     give more text or a smaller train.block"
                ),
            ));
        }
        Ok(train_bytes)
    }
}

impl TryFrom<RawTrainSpec> for TrainSpec {
    type Error = FieldError;

    fn try_from(raw: RawTrainSpec) -> Result<Self, FieldError> {
        Self::new(raw)
    }
}

impl From<TrainSpec> for RawTrainSpec {
    fn from(spec: TrainSpec) -> Self {
        spec.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_name_the_field() {
        let cases: [(RawTrainSpec, &str); 10] = [
            (RawTrainSpec { ema_decay: 1.0, ..Default::default() }, "ema_decay"),
            (RawTrainSpec { early_stop_min_change: -0.1, ..Default::default() }, "early_stop_min_change"),
            (RawTrainSpec { log_every: 0, ..Default::default() }, "log_every"),
            (RawTrainSpec { batch: 8, accumulate: 3, ..Default::default() }, "accumulate"),
            (RawTrainSpec { clip_norm: f64::NAN, ..Default::default() }, "clip_norm"),
            (RawTrainSpec { lr: f64::NAN, ..Default::default() }, "lr"),
            (RawTrainSpec { steps: 0, ..Default::default() }, "steps"),
            (RawTrainSpec { batch: u32::MAX, ..Default::default() }, "batch"),
            (RawTrainSpec { beta2: 1.0, ..Default::default() }, "beta2"),
            (RawTrainSpec { weight_decay: f64::INFINITY, ..Default::default() }, "weight_decay"),
        ];
        for (raw, field) in cases {
            assert_eq!(TrainSpec::new(raw).unwrap_err().field, field);
        }
    }

    #[test]
    fn the_learning_rate_rises_holds_and_falls() {
        let rates = |schedule, warmup_steps, steps| {
            let raw = RawTrainSpec { lr: 1.0, schedule, warmup_steps, steps, ..Default::default() };
            let spec = TrainSpec::new(raw).unwrap();
            (0..steps).map(|step| (spec.learning_rate(step) * 1000.0).round() / 1000.0).collect::<Vec<_>>()
        };
        assert_eq!(rates(Schedule::Constant, 4, 6), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
        assert_eq!(rates(Schedule::Cosine, 2, 7), [0.5, 1.0, 1.0, 0.868, 0.55, 0.232, 0.1]);
        let wsd = rates(Schedule::Wsd, 0, 20);
        assert_eq!(wsd[..16], [1.0; 16]);
        assert_eq!(wsd[16..], [0.775, 0.55, 0.325, 0.1]);
        assert_eq!(rates(Schedule::Cosine, 50, 3), [0.02, 0.04, 0.06], "a run may end within its warm-up");
        assert_eq!(rates(Schedule::Wsd, 0, 1).len(), 1);
    }

    #[test]
    fn a_run_given_more_steps_goes_on_by_the_schedule_of_the_longer_one() {
        let spec = |schedule, steps| {
            let raw = RawTrainSpec { schedule, steps, warmup_steps: 5, ..Default::default() };
            TrainSpec::new(raw).unwrap()
        };
        // The rate of a step follows from the step and the recipe, and from nothing that was before.
        let [short, long] = [100, 300].map(|steps| spec(Schedule::Cosine, steps));
        assert!(short.learning_rate(99) < long.learning_rate(100), "it rises again, and falls once more");
        assert!(long.learning_rate(299) <= short.learning_rate(99));
        let [short, long] = [100, 300].map(|steps| spec(Schedule::Wsd, steps));
        assert!((short.learning_rate(50) - long.learning_rate(100)).abs() < 1e-15, "back on the level");
        let [short, long] = [100, 300].map(|steps| spec(Schedule::Constant, steps));
        assert!((short.learning_rate(99) - long.learning_rate(100)).abs() < 1e-15);
    }

    #[test]
    fn the_running_mean_begins_soon() {
        let spec = TrainSpec::new(RawTrainSpec { ema_decay: 0.99, ..Default::default() }).unwrap();
        let decays =
            [0, 1, 10, 890, 891, 892, 10_000].map(|step| (spec.ema_decay(step) * 1e4).round() as u64);
        assert_eq!(decays, [1000, 1818, 5500, 9900, 9900, 9900, 9900]);
    }

    #[test]
    fn a_small_corpus_is_refused_with_its_sizes() {
        let spec = TrainSpec::new(RawTrainSpec::default()).unwrap();
        assert_eq!(spec.split(1_115_394).unwrap(), 1_003_854);
        let error = spec.split(1000).unwrap_err().to_string();
        assert!(error.contains("1000 bytes") && error.contains("129"), "{error}");
        assert!(spec.split(0).is_err());
    }
}
