//! One trainer process as a state machine that the simulation steps. It keeps the contract of
//! `hatchery_common::trainer`: it obeys commands, keeps the lease's deadline by itself, writes checkpoints, says how it
//! ends. It belongs to its machine, not to the agent: one whose agent has crashed goes on until it notices.

use std::{
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::ExitStatus,
    sync::{Arc, Mutex},
    time::Duration,
};

use hatchery_agent::trainer::process::Heard;
use hatchery_common::{
    recipe::Precision,
    time::BootTime,
    trainer::{AttemptOrder, Ending, Progress, TrainerCommand, TrainerEvent},
};
use tokio::sync::mpsc;

use crate::{
    checkpoint,
    history::{History, LifeId, lock},
};

/// From the start of the process to its first step: libtorch loads.
const STARTS_WITHIN: Duration = Duration::from_millis(200);

/// A trainer at work.
#[derive(Debug)]
pub(crate) struct FakeTrainer {
    pub(crate) id: u32,
    pub(crate) attempt: PathBuf,
    pub(crate) order: AttemptOrder,
    /// Pays no heed to commands and deadlines; only killing ends it.
    pub(crate) is_deaf: bool,
    life: LifeId,
    step: u64,
    step_every: Duration,
    next_step_at: Duration,
    is_stopped: bool,
    has_stepped: bool,
    heard: mpsc::UnboundedSender<Heard>,
    history: Arc<Mutex<History>>,
}

impl FakeTrainer {
    pub(crate) fn start(
        id: u32,
        attempt: PathBuf,
        order: AttemptOrder,
        step_every: Duration,
        life: LifeId,
        now: Duration,
        history: Arc<Mutex<History>>,
    ) -> std::io::Result<(Self, mpsc::UnboundedReceiver<Heard>)> {
        let (heard, hearing) = mpsc::unbounded_channel();
        let step = order.resume_from.as_deref().map(checkpoint::step_of).transpose()?.unwrap_or(0);
        let this = Self {
            id,
            attempt,
            order,
            is_deaf: false,
            life,
            step,
            step_every,
            next_step_at: now + STARTS_WITHIN,
            is_stopped: false,
            has_stepped: false,
            heard,
            history,
        };
        this.say(TrainerEvent::Started {
            step,
            device: this.order.device,
            precision: Precision::F32,
            libtorch: "2.11.0".to_owned(),
            slower_because: None,
        });
        Ok((this, hearing))
    }

    pub(crate) fn obey(&mut self, command: TrainerCommand) {
        match command {
            TrainerCommand::Lease { until } => self.order.lease_until = Some(until),
            TrainerCommand::Stop => self.is_stopped = true,
        }
    }

    /// Goes on until `now`; whether it still runs.
    pub(crate) fn advance(&mut self, now: Duration, boot: BootTime) -> bool {
        while self.next_step_at <= now {
            let expired = self.order.lease_until.is_some_and(|until| boot >= until);
            if (self.is_stopped || expired) && !self.is_deaf {
                self.checkpoint();
                return self.end(if self.is_stopped { Ending::Stopped } else { Ending::LeaseExpired }, now);
            }
            let train = self.order.train.raw();
            let (steps, checkpoint_every) = (train.steps, train.checkpoint_every);
            if self.step < steps {
                self.step += 1;
                self.has_stepped = true;
                lock(&self.history).stepped(self.life, self.step);
                self.say(TrainerEvent::Progress(Progress {
                    step: self.step,
                    train_loss: 2.0,
                    ..Progress::default()
                }));
            }
            if self.step >= steps {
                self.checkpoint();
                return self.end(Ending::Completed, now);
            }
            if self.step.is_multiple_of(checkpoint_every) {
                self.checkpoint();
            }
            self.next_step_at += self.step_every;
        }
        true
    }

    /// It is gone at once.
    pub(crate) fn killed(&self, now: Duration) {
        self.exit(ExitStatus::from_raw(9), "killed", now);
    }

    fn end(&self, ending: Ending, now: Duration) -> bool {
        let how = match &ending {
            Ending::Completed => "completed",
            Ending::Stopped => "stopped",
            Ending::LeaseExpired => "lease expired",
            Ending::NodeAway => "node away",
            Ending::Failed { .. } => "failed",
        };
        self.say(TrainerEvent::Ended(ending));
        self.exit(ExitStatus::from_raw(0), how, now);
        false
    }

    fn exit(&self, status: ExitStatus, how: &'static str, now: Duration) {
        lock(&self.history).ended(self.life, how, now);
        // Without an agent nobody hears it.
        let _orphan = self.heard.send(Heard::Exited(status));
    }

    /// Only what has made a step writes a checkpoint.
    fn checkpoint(&self) {
        let folder = self.order.checkpoints.join(hatchery_common::checkpoint::folder_name(self.step));
        if !self.has_stepped || folder.exists() {
            return;
        }
        match checkpoint::write(&self.order, self.step) {
            Ok(folder) => {
                self.say(TrainerEvent::Checkpoint {
                    folder,
                    step: self.step,
                    metrics: checkpoint::metrics(),
                });
            }
            Err(error) => lock(&self.history).problem(format!("a trainer cannot write: {error}")),
        }
    }

    fn say(&self, event: TrainerEvent) {
        // Without an agent nobody hears it.
        let _orphan = self.heard.send(Heard::Event(event));
    }
}
