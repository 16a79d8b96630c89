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
    time::BootTime,
    trainer::{AttemptOrder, Ending, TrainerCommand, TrainerEvent},
};
use hatchery_fake_trainer::{Orders, Run, started};
use tokio::sync::mpsc;

use crate::history::{History, LifeId, lock};

/// From the start of the process to its first step: libtorch loads.
const STARTS_WITHIN: Duration = Duration::from_millis(200);

/// A trainer at work.
#[derive(Debug)]
pub(crate) struct FakeTrainer {
    pub(crate) id: u32,
    pub(crate) attempt: PathBuf,
    /// Pays no heed to commands and deadlines; only killing ends it.
    pub(crate) is_deaf: bool,
    orders: Orders,
    run: Run,
    life: LifeId,
    step_every: Duration,
    next_step_at: Duration,
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
        let (orders, run) = (Orders::of(&order), Run::begin(order)?);
        let this = Self {
            id,
            attempt,
            is_deaf: false,
            orders,
            run,
            life,
            step_every,
            next_step_at: now + STARTS_WITHIN,
            heard,
            history,
        };
        this.say(started(this.run.order(), this.run.step()));
        Ok((this, hearing))
    }

    pub(crate) fn obey(&mut self, command: TrainerCommand) {
        self.orders.obey(command);
    }

    /// Goes on until `now`; whether it still runs.
    pub(crate) fn advance(&mut self, now: Duration, boot: BootTime) -> bool {
        while self.next_step_at <= now {
            if let Some(ending) = self.orders.ending(boot).filter(|_| !self.is_deaf) {
                self.keep();
                return self.end(ending, now);
            }
            if !self.run.is_complete() {
                let progress = self.run.make_step();
                lock(&self.history).stepped(self.life, self.run.step());
                self.say(progress);
            }
            if self.run.wants_checkpoint() {
                self.keep();
            }
            if self.run.is_complete() {
                return self.end(Ending::Completed, now);
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

    /// Writes a checkpoint, where there is none of this step by this attempt yet.
    fn keep(&mut self) {
        if self.run.folder().exists() {
            return;
        }
        match self.run.keep() {
            Ok(event) => event.into_iter().for_each(|event| self.say(event)),
            Err(error) => lock(&self.history).problem(format!("a trainer cannot write: {error}")),
        }
    }

    fn say(&self, event: TrainerEvent) {
        // Without an agent nobody hears it.
        let _orphan = self.heard.send(Heard::Event(event));
    }
}
