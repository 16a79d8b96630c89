//! The machine that this process runs on, as a platform.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{FutureExt, future::BoxFuture};
use hatchery_common::{
    device::Device,
    node::{Inventory, NodeMetrics},
    trainer::{Calibration, TrainerCommand},
};
use hatchery_net::{
    blocking,
    transport::{Listener, Network, Tcp},
};

use crate::{
    machine::{
        availability::{AvailabilitySettings, Usage, UsageMeter},
        inventory, metrics,
    },
    platform::{Platform, Trainer},
    trainer::{
        answerer::AnswererProcess,
        orphan,
        process::{Heard, TrainerProcess},
        stderr_log::StderrLog,
        tool::{self, TrainerToolError},
    },
};

/// This machine.
#[derive(Clone, Debug)]
pub struct Host {
    trainer: PathBuf,
    meter: UsageMeter,
}

impl Host {
    /// This machine, with the program of its trainer.
    pub fn new(trainer: PathBuf) -> Self {
        Self { trainer, meter: UsageMeter::default() }
    }
}

impl Platform for Host {
    fn network(&self) -> Arc<dyn Network> {
        Arc::new(Tcp)
    }

    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        async move {
            let listener: Box<dyn Listener> = Box::new(Tcp::listen(address)?);
            Ok(listener)
        }
        .boxed()
    }

    fn look<'a>(&'a self, state: &'a Path) -> BoxFuture<'a, Inventory> {
        inventory::look(state, &self.trainer).boxed()
    }

    fn metrics<'a>(&'a self, state: &'a Path) -> BoxFuture<'a, NodeMetrics> {
        let state = state.to_owned();
        blocking(move || metrics::read(&state)).boxed()
    }

    fn trainer(&self) -> &Path {
        &self.trainer
    }

    fn calibrate(
        &self,
        device: Device,
        cpu_threads: u32,
    ) -> BoxFuture<'_, Result<Calibration, TrainerToolError>> {
        tool::calibrate(&self.trainer, device, cpu_threads).boxed()
    }

    fn start_trainer(
        &self,
        order: &Path,
        log: &StderrLog,
        grew: Box<dyn Fn() + Send>,
    ) -> io::Result<Box<dyn Trainer>> {
        let process = TrainerProcess::start(&self.trainer, order, log, grew)?;
        if let Some(attempt) = order.parent()
            && let Err(error) = orphan::note(attempt, process.id())
        {
            tracing::warn!(%error, "cannot record the trainer's process; after a crash the agent would not find it");
        }
        Ok(Box::new(process))
    }

    fn start_answerer(&self, checkpoint: &Path, device: Device) -> io::Result<AnswererProcess> {
        AnswererProcess::start(&self.trainer, checkpoint, device)
    }

    fn usage<'a>(&'a self, policy: &'a AvailabilitySettings) -> BoxFuture<'a, Usage> {
        self.meter.look(policy).boxed()
    }

    fn end_orphan<'a>(&'a self, attempt: &'a Path) -> BoxFuture<'a, ()> {
        let attempt = attempt.to_owned();
        blocking(move || orphan::end(&attempt)).boxed()
    }
}

impl Trainer for TrainerProcess {
    fn id(&self) -> u32 {
        Self::id(self)
    }

    fn tell(&self, command: TrainerCommand) {
        Self::tell(self, command);
    }

    fn terminate(&self) {
        Self::terminate(self);
    }

    fn kill(&self) {
        Self::kill(self);
    }

    fn hear(&mut self) -> BoxFuture<'_, Heard> {
        Self::hear(self).boxed()
    }
}
