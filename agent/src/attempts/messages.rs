//! What an attempt is told, and what it tells.

use hatchery_common::{
    id::{AttemptId, CheckpointId},
    time::BootTime,
    trainer::{Ending, Progress, Validation},
};
use tokio::sync::mpsc;

use crate::reconcile::StopReason;

/// What an attempt is told; the newest counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Orders {
    /// When the trainer is to stop by itself.
    pub(crate) stop_by: Option<BootTime>,
    /// To write a checkpoint and stop.
    pub(crate) stop: Option<StopReason>,
    /// To end at once.
    pub(crate) kill: bool,
}

/// What an attempt tells.
#[derive(Clone, Debug)]
pub(crate) enum AttemptUpdate {
    /// How much of the dataset or checkpoint that it needs is here.
    Fetching {
        done_bytes: u64,
        total_bytes: u64,
    },
    /// It goes on from a checkpoint that is here, or made one: that one is in use.
    Uses(CheckpointId),
    /// Its trainer was started.
    Starting,
    /// Its trainer makes steps, on this device with this arithmetic.
    Running(String),
    Progress(Progress),
    Validation(Validation),
    /// Its trainer is gone, its checkpoints are on their way.
    Delivering,
    Ended {
        ending: Ending,
        last_output: String,
    },
}

/// Tells the loop of one attempt.
#[derive(Clone)]
pub(crate) struct Reporter {
    pub(super) attempt: AttemptId,
    pub(super) updates: mpsc::Sender<(AttemptId, AttemptUpdate)>,
}

impl Reporter {
    /// Waits for room.
    pub(super) async fn tell(&self, update: AttemptUpdate) {
        // Nobody listens any more only when the agent ends, and this attempt with it.
        let _nobody = self.updates.send((self.attempt, update)).await;
    }

    /// Leaves the update out if there is no room.
    pub(super) fn try_tell(&self, update: AttemptUpdate) {
        let _full = self.updates.try_send((self.attempt, update));
    }
}
