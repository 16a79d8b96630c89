//! What trainers say of their runs.

use hatchery_common::{
    field::FieldError,
    trainer::{
        Ending, FailureCause, GpuReading, LossPoint, Metrics, PositionLoss, Progress, Slowdown, Validation,
    },
};

use super::{
    enums::Enumeration,
    fields::{OUTPUT_BYTES_MAX, amount, at_most, head, loss, missing, short_text},
};
use crate::v1::{self, ending};

/// Most ranges of positions, which double: enough for the longest window.
const POSITIONS_MAX: usize = 32;

impl From<Progress> for v1::Progress {
    fn from(progress: Progress) -> Self {
        Self {
            step: progress.step,
            train_loss: progress.train_loss,
            first_loss: progress.first_loss,
            steps_per_sec: progress.steps_per_sec,
            memory_bytes: progress.memory_bytes,
            power_watts: progress.power_watts,
            gpu: progress.gpu.map(Into::into),
        }
    }
}

impl TryFrom<v1::Progress> for Progress {
    type Error = FieldError;

    fn try_from(progress: v1::Progress) -> Result<Self, FieldError> {
        Ok(Self {
            step: progress.step,
            train_loss: loss("train_loss", progress.train_loss)?,
            first_loss: loss_optional("first_loss", progress.first_loss)?,
            steps_per_sec: amount("steps_per_sec", progress.steps_per_sec)?,
            memory_bytes: progress.memory_bytes,
            power_watts: progress.power_watts.map(|watts| amount("power_watts", watts)).transpose()?,
            gpu: progress.gpu.map(Into::into),
        })
    }
}

impl From<GpuReading> for v1::GpuReading {
    fn from(reading: GpuReading) -> Self {
        let GpuReading { busy_percent, memory_bytes, temperature_celsius, slowed_by } = reading;
        let slowed_by = slowed_by.map_or(0, Enumeration::number);
        Self { busy_percent, memory_bytes, temperature_celsius, slowed_by }
    }
}

// Figures for whoever looks on: what a newer agent says that is not known here ends no session.
impl From<v1::GpuReading> for GpuReading {
    fn from(reading: v1::GpuReading) -> Self {
        const WHOLE_PERCENT: u32 = 100;
        let v1::GpuReading { busy_percent, memory_bytes, temperature_celsius, slowed_by } = reading;
        let busy_percent = busy_percent.map(|percent| percent.min(WHOLE_PERCENT));
        Self { busy_percent, memory_bytes, temperature_celsius, slowed_by: Slowdown::of_number(slowed_by) }
    }
}

impl From<Validation> for v1::Validation {
    fn from(validation: Validation) -> Self {
        let Validation { step, loss, by_position } = validation;
        let position = |PositionLoss { from, to, loss }| v1::PositionLoss { from, to, loss };
        Self { step, loss, by_position: by_position.into_iter().map(position).collect() }
    }
}

impl TryFrom<v1::Validation> for Validation {
    type Error = FieldError;

    fn try_from(validation: v1::Validation) -> Result<Self, FieldError> {
        at_most("by_position", validation.by_position.len(), POSITIONS_MAX, "entries")?;
        let position = |(index, v1::PositionLoss { from, to, loss: of_range })| {
            let loss = loss(&format!("by_position.{index}.loss"), of_range)?;
            Ok(PositionLoss { from, to, loss })
        };
        Ok(Self {
            step: validation.step,
            loss: loss("loss", validation.loss)?,
            by_position: validation
                .by_position
                .into_iter()
                .enumerate()
                .map(position)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl From<Metrics> for v1::Metrics {
    fn from(metrics: Metrics) -> Self {
        Self {
            first_loss: metrics.first_loss,
            train_loss: metrics.train_loss,
            validation_loss: metrics.validation_loss,
            validation_step: metrics.validation_step,
            best: metrics.best.map(|LossPoint { step, loss }| v1::LossPoint { step, loss }),
            early_stop: metrics.early_stop,
        }
    }
}

impl TryFrom<v1::Metrics> for Metrics {
    type Error = FieldError;

    fn try_from(metrics: v1::Metrics) -> Result<Self, FieldError> {
        let best = |v1::LossPoint { step, loss: at_best }| {
            Ok::<_, FieldError>(LossPoint { step, loss: loss("best.loss", at_best)? })
        };
        Ok(Self {
            first_loss: loss_optional("first_loss", metrics.first_loss)?,
            train_loss: loss_optional("train_loss", metrics.train_loss)?,
            validation_loss: loss_optional("validation_loss", metrics.validation_loss)?,
            validation_step: metrics.validation_step,
            best: metrics.best.map(best).transpose()?,
            early_stop: metrics.early_stop,
        })
    }
}

/// A loss that may be absent.
fn loss_optional(field: &str, value: Option<f64>) -> Result<Option<f64>, FieldError> {
    value.map(|value| loss(field, value)).transpose()
}

impl From<Ending> for v1::Ending {
    fn from(ending: Ending) -> Self {
        let how = match ending {
            Ending::Completed => ending::How::Completed(ending::Completed {}),
            Ending::Stopped => ending::How::Stopped(ending::Stopped {}),
            Ending::LeaseExpired => ending::How::LeaseExpired(ending::LeaseExpired {}),
            Ending::NodeAway => ending::How::NodeAway(ending::NodeAway {}),
            Ending::Failed { cause, message } => {
                let message = head(message, OUTPUT_BYTES_MAX);
                ending::How::Failed(ending::Failed { cause: cause.number(), message })
            }
        };
        Self { how: Some(how) }
    }
}

impl TryFrom<v1::Ending> for Ending {
    type Error = FieldError;

    fn try_from(ending: v1::Ending) -> Result<Self, FieldError> {
        Ok(match ending.how.ok_or_else(|| missing("how"))? {
            ending::How::Completed(_) => Self::Completed,
            ending::How::Stopped(_) => Self::Stopped,
            ending::How::LeaseExpired(_) => Self::LeaseExpired,
            ending::How::NodeAway(_) => Self::NodeAway,
            ending::How::Failed(failed) => Self::Failed {
                cause: FailureCause::read("failed.cause", failed.cause)?,
                message: short_text("failed.message", failed.message, OUTPUT_BYTES_MAX)?,
            },
        })
    }
}
