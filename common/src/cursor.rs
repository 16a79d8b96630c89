//! Where a run stands: what going on needs beside weights and moments, because batches and dropout follow from the seed
//! and the step.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    recipe::TrainSpec,
    trainer::{LossPoint, Metrics},
};

/// Where a run stands in its recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingCursor {
    /// Version of this form; 1.
    pub version: u32,
    /// Steps done.
    pub step: u64,
    /// The recipe.
    pub train: TrainSpec,
    /// Length of the corpus in bytes; another length is another corpus.
    pub corpus_bytes: u64,
    /// What is known of the run at this step.
    pub metrics: Metrics,
    /// The losses of the run so far.
    #[serde(default)]
    pub curve: LossCurve,
    /// How long the run has been without a gain.
    #[serde(default)]
    pub patience: Patience,
    /// The digest of the `model.safetensors` whose weights the run began with; none: with random ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
}

/// The losses of a run so far. What it holds follows from the recipe and the step alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LossCurve {
    /// Mean training losses, each of the steps since the point before.
    pub training: Vec<LossPoint>,
    /// Validation losses.
    pub validation: Vec<LossPoint>,
    /// The sum of the losses since the last point, in nats per byte.
    pub open_sum: f64,
    /// How many steps these are.
    pub open_steps: u64,
}

impl LossCurve {
    /// Most points of each kind. When there are so many, neighbours become one.
    pub const POINTS_MAX: usize = 2048;

    /// Adds the loss of the step after which `step` steps are done; gives the point that it completes.
    pub fn add(&mut self, step: u64, loss: f64, log_every: u64) -> Option<LossPoint> {
        self.open_sum += loss;
        self.open_steps += 1;
        if !step.is_multiple_of(log_every) {
            return None;
        }
        let point = LossPoint { step, loss: self.open_sum / self.open_steps as f64 };
        (self.open_sum, self.open_steps) = (0.0, 0);
        self.training.push(point);
        if self.training.len() == Self::POINTS_MAX {
            let mut before = 0;
            self.training = pairs(&self.training, |a, b| {
                let (first, second) = ((a.step - before) as f64, (b.step - a.step) as f64);
                before = b.step;
                LossPoint { step: b.step, loss: (a.loss * first + b.loss * second) / (first + second) }
            });
        }
        Some(point)
    }

    /// Adds a validation.
    pub fn validated(&mut self, point: LossPoint) {
        self.validation.push(point);
        if self.validation.len() == Self::POINTS_MAX {
            self.validation = pairs(&self.validation, |_, b| b);
        }
    }

    /// The training loss now: the last point's, or before the first one the mean of all steps.
    pub fn train_loss(&self) -> Option<f64> {
        let open = || (self.open_steps > 0).then(|| self.open_sum / self.open_steps as f64);
        self.training.last().map(|point| point.loss).or_else(open)
    }
}

fn pairs(points: &[LossPoint], mut merge: impl FnMut(LossPoint, LossPoint) -> LossPoint) -> Vec<LossPoint> {
    points.as_chunks().0.iter().map(|[a, b]| merge(*a, *b)).collect()
}

/// How long a run has been without a gain, for `train.early_stop`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Patience {
    /// The loss that the last gain came to, in nats per byte.
    pub loss: Option<f64>,
    /// Validations since then.
    pub validations: u32,
}

impl Patience {
    /// Hears a validation's loss; one that is lower by more than `min_change` is a gain.
    pub fn hear(&mut self, loss: f64, min_change: f64) {
        if self.loss.is_none_or(|before| loss < before - min_change) {
            *self = Self { loss: Some(loss), validations: 0 };
        } else {
            self.validations += 1;
        }
    }

    /// Whether a run that waits for `early_stop` validations, 0 for ever, is over.
    pub fn is_over(&self, early_stop: u32) -> bool {
        early_stop > 0 && self.validations >= early_stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_the_means_since_the_point_before() {
        let mut curve = LossCurve::default();
        assert_eq!(curve.train_loss(), None);
        let points: Vec<_> = (1..=7).filter_map(|step| curve.add(step, step as f64, 3)).collect();
        assert_eq!(points, [LossPoint { step: 3, loss: 2.0 }, LossPoint { step: 6, loss: 5.0 }]);
        assert_eq!((curve.train_loss(), curve.open_steps), (Some(5.0), 1));
        // Another distance from here on: the next point is at its next multiple.
        assert_eq!(curve.add(8, 8.0, 4), Some(LossPoint { step: 8, loss: 7.5 }));
    }

    #[test]
    #[allow(clippy::float_cmp, reason = "small whole numbers and their means are exact")]
    fn a_long_curve_grows_coarser_and_keeps_its_mean() {
        let mut curve = LossCurve::default();
        let steps = 3 * LossCurve::POINTS_MAX as u64;
        for step in 1..=steps {
            curve.add(step, step as f64, 1);
            curve.validated(LossPoint { step, loss: step as f64 });
        }
        for points in [&curve.training, &curve.validation] {
            assert!(points.len() < LossCurve::POINTS_MAX && points.len() > LossCurve::POINTS_MAX / 4);
            assert!(points.is_sorted_by_key(|point| point.step));
            assert_eq!(points.last().unwrap().step, steps);
        }
        let mut before = 0;
        for point in &curve.training {
            assert_eq!(point.loss, (before + 1 + point.step) as f64 / 2.0, "the mean of its steps");
            before = point.step;
        }
    }

    #[test]
    fn patience_ends_after_so_many_validations_without_a_gain() {
        let mut patience = Patience::default();
        for (loss, validations) in [(3.0, 0), (2.0, 0), (1.95, 1), (2.5, 2), (1.8, 0), (f64::MAX, 1)] {
            patience.hear(loss, 0.1);
            assert_eq!(patience.validations, validations, "{loss}");
        }
        assert!(patience.is_over(1) && !patience.is_over(2) && !patience.is_over(0));
    }
}
