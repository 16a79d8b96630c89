//! A run that learns a chain of digests over the job and all steps so far: a step that is lost, doubled or out of order
//! shows in every checkpoint after it.

use std::{fs, io, path::PathBuf};

use hatchery_common::{
    checkpoint::{OPTIMIZER_FILE, folder_name},
    id::{AttemptId, Epoch},
    recipe::Precision,
    trainer::{AttemptOrder, Progress, TrainerEvent},
};
use serde::{Deserialize, Serialize};

use crate::checkpoint;

/// What the optimizer's file says, as JSON: which attempt wrote the checkpoint at which step, and what it went on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments {
    #[serde(flatten)]
    pub attempt: AttemptId,
    pub step: u64,
    /// What was learnt by this step, in hexadecimal digits.
    pub chain: String,
    pub resumed_step: u64,
    pub resumed_epoch: Epoch,
}

/// The first event of a trainer that begins after `step`.
pub fn started(order: &AttemptOrder, step: u64) -> TrainerEvent {
    TrainerEvent::Started {
        step,
        device: order.device,
        precision: Precision::F32,
        libtorch: "2.11.0".to_owned(),
        slower_because: None,
    }
}

/// A run between two steps.
#[derive(Debug)]
pub struct Run {
    order: AttemptOrder,
    resumed_step: u64,
    resumed_epoch: Epoch,
    step: u64,
    chain: blake3::Hash,
    /// The newest step that stands in a checkpoint.
    kept: u64,
}

impl Run {
    /// Begins, or goes on from a checkpoint of such a run.
    pub fn begin(order: AttemptOrder) -> io::Result<Self> {
        let (step, epoch, chain) = match &order.resume_from {
            None => (0, Epoch::default(), blake3::hash(order.attempt.job.to_string().as_bytes())),
            Some(folder) => {
                let moments: Moments = serde_json::from_slice(&fs::read(folder.join(OPTIMIZER_FILE))?)?;
                (moments.step, moments.attempt.epoch, moments.chain.parse().map_err(io::Error::other)?)
            }
        };
        Ok(Self { order, resumed_step: step, resumed_epoch: epoch, step, chain, kept: step })
    }

    pub fn order(&self) -> &AttemptOrder {
        &self.order
    }

    /// Steps made so far, those of earlier attempts too.
    pub fn step(&self) -> u64 {
        self.step
    }

    pub fn is_complete(&self) -> bool {
        self.step >= self.order.train.raw().steps
    }

    /// Makes a step, and gives the event that tells of it.
    pub fn make_step(&mut self) -> TrainerEvent {
        self.step += 1;
        self.chain = blake3::hash(&[self.chain.as_bytes(), &self.step.to_le_bytes()[..]].concat());
        TrainerEvent::Progress(Progress { step: self.step, train_loss: 2.0, ..Progress::default() })
    }

    /// Whether the recipe wants a checkpoint now.
    pub fn wants_checkpoint(&self) -> bool {
        self.is_complete() || self.step.is_multiple_of(self.order.train.raw().checkpoint_every)
    }

    /// The folder of a checkpoint of now.
    pub fn folder(&self) -> PathBuf {
        self.order.checkpoints.join(folder_name(self.step))
    }

    /// Writes a checkpoint and gives the event that tells of it; none where there is nothing new.
    pub fn keep(&mut self) -> io::Result<Option<TrainerEvent>> {
        if self.step == self.kept {
            return Ok(None);
        }
        let moments = Moments {
            attempt: self.order.attempt,
            step: self.step,
            chain: self.chain.to_string(),
            resumed_step: self.resumed_step,
            resumed_epoch: self.resumed_epoch,
        };
        let event = checkpoint::write(&self.order, self.step, &serde_json::to_vec(&moments)?, 1.0)?;
        self.kept = self.step;
        Ok(Some(event))
    }
}
