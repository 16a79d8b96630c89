//! The contract between an agent and the `hatchery-trainer` process that it starts: one child for each attempt.
//!
//! The agent writes an [`AttemptOrder`] to a file and starts `hatchery-trainer train --attempt FILE`. The trainer
//! writes one [`TrainerEvent`] as JSON on each line of stdout; stderr is text for people. The agent writes one
//! [`TrainerCommand`] as JSON on each line of stdin; the end of stdin means that the agent is gone, and stops the
//! trainer as [`TrainerCommand::Stop`] does. `SIGTERM` and `SIGINT` do the same.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    device::Device,
    id::AttemptId,
    model::ModelConfig,
    recipe::{Precision, TrainSpec},
    time::BootTime,
};

/// What one trainer process is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptOrder {
    /// Which attempt of which job, for the records.
    #[serde(flatten)]
    pub attempt: AttemptId,
    /// The model's shape.
    pub model: ModelConfig,
    /// Steps, batch, optimizer and so on.
    pub train: TrainSpec,
    /// The corpus: one file of bytes.
    pub corpus: PathBuf,
    /// Where to run.
    pub device: Device,
    /// Threads for a CPU device; 0: as many as there are cores.
    pub threads: u32,
    /// The folder that checkpoint folders are written into, as `step-000000100`.
    pub checkpoints: PathBuf,
    /// The checkpoint folder to go on from; none: from the start.
    pub resume_from: Option<PathBuf>,
    /// With no `resume_from`, the folder whose weights the start has instead of random ones.
    #[serde(default)]
    pub fine_tune_from: Option<PathBuf>,
    /// When the lease runs out, unless a later [`TrainerCommand::Lease`] extends it. The trainer writes a checkpoint
    /// and stops by itself when this comes. None: no lease, when run by hand.
    pub lease_until: Option<BootTime>,
}

/// A line from the agent to the trainer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum TrainerCommand {
    /// The lease now runs until `until`.
    Lease {
        /// The new end, on the boot clock.
        until: BootTime,
    },
    /// Write a checkpoint and exit.
    Stop,
}

/// A line from the trainer to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TrainerEvent {
    /// Weights are on the device; the first step comes next.
    Started {
        /// Steps already done by the checkpoint that it goes on from, 0 from the start.
        step: u64,
        /// Where it runs.
        device: Device,
        /// The arithmetic chosen.
        precision: Precision,
        /// The libtorch version, such as `2.11.0`.
        libtorch: String,
        /// Why a step takes longer than it could on this device, if it does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slower_because: Option<String>,
    },
    /// Progress, a few times a second at most: by the clock, for whoever looks on.
    Progress(Progress),
    /// A point of the training loss's curve, each `train.log_every` steps. As validations, these follow from the run
    /// alone: they are the same however often it was interrupted, and nobody has looked on.
    TrainLoss(LossPoint),
    /// A validation.
    Validation(Validation),
    /// The run ends here, though it has steps left: that many validations in a row brought no gain.
    EarlyStop {
        /// Steps done.
        step: u64,
        /// The best validation so far.
        best: LossPoint,
        /// How many validations.
        validations: u32,
    },
    /// A checkpoint folder is complete and durable under its final name.
    Checkpoint {
        /// The folder.
        folder: PathBuf,
        /// Steps done.
        step: u64,
        /// What is known of the run at that step.
        metrics: Metrics,
    },
    /// The last event of every run that was not killed.
    Ended(Ending),
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Mean training loss in nats per byte, of the last full `train.log_every` steps, or of all before they are full.
    pub train_loss: f64,
    /// Training loss of the first step of the whole run, in nats per byte.
    pub first_loss: Option<f64>,
    /// Steps per second over the last seconds, validation and checkpoints left out.
    pub steps_per_sec: f64,
    /// Memory that the trainer holds: on the GPU for a GPU, resident for a CPU.
    pub memory_bytes: u64,
    /// Power of the device, where it says so.
    pub power_watts: Option<f64>,
    /// What a GPU says of itself, where it does.
    pub gpu: Option<GpuReading>,
}

/// What a GPU says of itself during a run; each figure where it has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuReading {
    /// In how much of the last moments it worked, in percent.
    pub busy_percent: Option<u32>,
    /// Memory in use, by whichever process.
    pub memory_bytes: Option<u64>,
    /// Temperature of the chip.
    pub temperature_celsius: Option<u32>,
    /// Why it runs slower than it could, if it does.
    pub slowed_by: Option<Slowdown>,
}

/// Why a GPU runs slower than it could.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slowdown {
    /// It is too hot.
    Heat,
    /// It draws what it may draw at most: usual at full load.
    PowerLimit,
    /// The power supply demands it.
    PowerSupply,
    /// It protects itself and does not say from what.
    Protection,
}

impl Slowdown {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Heat, Self::PowerLimit, Self::PowerSupply, Self::Protection];

    /// As said after "slowed by".
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Heat => "heat",
            Self::PowerLimit => "its power limit",
            Self::PowerSupply => "the power supply",
            Self::Protection => "hardware protection",
        }
    }
}

/// The result of one validation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Validation {
    /// Steps done.
    pub step: u64,
    /// Mean loss in nats per byte over the held-out windows, dropout off.
    pub loss: f64,
    /// The same by the place in the window: nothing is known at its start, most at its end.
    pub by_position: Vec<PositionLoss>,
}

/// The mean loss at some positions of the windows. Position n is foretold from the n bytes before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PositionLoss {
    /// The first position, from 1.
    pub from: u32,
    /// The last position.
    pub to: u32,
    /// Nats per byte.
    pub loss: f64,
}

/// Nats in bits.
pub fn bits(nats: f64) -> f64 {
    nats / std::f64::consts::LN_2
}

/// A loss at a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Steps done.
    pub step: u64,
    /// Nats per byte.
    pub loss: f64,
}

/// What a checkpoint says about its run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// Training loss of the first step, in nats per byte.
    pub first_loss: Option<f64>,
    /// Mean training loss in nats per byte, of the last full `train.log_every` steps, or of all before they are full.
    pub train_loss: Option<f64>,
    /// The last validation's loss, in nats per byte.
    pub validation_loss: Option<f64>,
    /// The step of that validation. Absent fields are left out, so that older manifests keep their names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_step: Option<u64>,
    /// The best validation so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<LossPoint>,
    /// Set where the run ended here for want of gain: how many validations in a row brought none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stop: Option<u32>,
}

impl Metrics {
    /// The validation loss of the very step that these figures are of; none: that step was not validated.
    pub fn own_validation_loss(&self, step: u64) -> Option<f64> {
        self.validation_loss.filter(|_| self.validation_step == Some(step))
    }

    /// Why a run ended before its last step, as half a sentence; none: it did not.
    pub fn early_stop_reason(&self) -> Option<String> {
        let (validations, best) = self.early_stop.zip(self.best)?;
        Some(format!(
            "no improvement in {validations} validation{} since the best, {:.4} at step {}",
            if validations == 1 { "" } else { "s" },
            best.loss,
            best.step
        ))
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Ending {
    /// All steps are done, or no more are wanted, and the last checkpoint is written.
    Completed,
    /// It was told to stop; a checkpoint is written, if any step was done.
    Stopped,
    /// The lease ran out; a checkpoint is written, if any step was done.
    LeaseExpired,
    /// The node's owner needs it; a checkpoint is written, if any step was done. Agents say this, trainers never do.
    NodeAway,
    /// It cannot go on.
    Failed {
        /// Why, as a class that decides whether another attempt makes sense.
        cause: FailureCause,
        /// Why, for a person.
        message: String,
    },
}

/// Why a run failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCause {
    /// The process died or ended without a word: a crash, a kill, a fault of the device.
    Crashed,
    /// The device or the machine has too little memory for model and batch.
    OutOfMemory,
    /// The corpus or the checkpoint cannot be used; another attempt would fail the same way.
    BadInput,
    /// The loss is not a number.
    NotANumber,
    /// libtorch or the device cannot be used on this node.
    Unavailable,
    /// The disk is full or broken.
    Storage,
    /// The node's version does not know a key of the recipe; a newer one may.
    Outdated,
}

/// What `hatchery-trainer doctor --output json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoctorReport {
    /// The trainer's own version.
    pub trainer: String,
    /// The libtorch version found, such as `2.11.0`.
    pub libtorch: String,
    /// The folder that libtorch was loaded from, if it can be told.
    pub libtorch_folder: Option<PathBuf>,
    /// The devices that can be used.
    pub devices: Vec<TrainerDevice>,
    /// Kinds of device that cannot be used, each with the reason.
    pub unavailable: Vec<UnavailableDevice>,
}

/// A device that the trainer can use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainerDevice {
    /// Which.
    pub device: Device,
    /// Its model name, where it can be told.
    pub name: String,
    /// Its memory, where it can be told; 0 if not.
    pub memory_bytes: u64,
    /// Whether bf16 matrix products are supported in hardware.
    pub bf16: bool,
}

/// A kind of device that cannot be used here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnavailableDevice {
    /// `cuda` or `mps`.
    pub kind: crate::device::DeviceKind,
    /// Why not, and what would change that.
    pub why: String,
}

/// What `hatchery-trainer calibrate --output json` prints: the speed of one device on a fixed configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The device measured.
    pub device: Device,
    /// Steps per second of the preset `tiny`, checkpoints and validation left out.
    pub steps_per_sec: f64,
    /// The same as matrix-product FLOP per second, for estimating other shapes.
    pub flops_per_sec: f64,
    /// Version of the measuring code; a change measures again.
    pub version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_form() {
        let line = serde_json::to_string(&TrainerEvent::Ended(Ending::Failed {
            cause: FailureCause::OutOfMemory,
            message: "no room".into(),
        }))
        .unwrap();
        assert_eq!(line, r#"{"event":"ended","how":"failed","cause":"out_of_memory","message":"no room"}"#);
        let line = serde_json::to_string(&TrainerCommand::Lease { until: BootTime(5) }).unwrap();
        assert_eq!(line, r#"{"command":"lease","until":5}"#);
        let progress: TrainerEvent = serde_json::from_str(r#"{"event":"progress","step":3}"#).unwrap();
        assert_eq!(progress, TrainerEvent::Progress(Progress { step: 3, ..Default::default() }));
    }
}
