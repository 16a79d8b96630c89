//! This machine with an owner whose hands the test moves.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use hatchery_agent::{
    AvailabilitySettings, Host, Platform, Trainer, Usage,
    trainer::{answerer::AnswererProcess, stderr_log::StderrLog, tool::TrainerToolError},
};
use hatchery_common::{
    device::Device,
    node::{Inventory, NodeMetrics},
    trainer::Calibration,
};
use hatchery_net::transport::Network;

#[derive(Clone, Debug, Default)]
pub struct Owner {
    is_there: Arc<AtomicBool>,
    disk_free_bytes: Arc<AtomicU64>,
}

impl Owner {
    /// Sits down at the machine, or has been gone for an hour.
    pub fn is_there(&self, there: bool) {
        self.is_there.store(there, Ordering::Relaxed);
    }

    /// Leaves so much of the disk.
    pub fn leaves_free(&self, bytes: u64) {
        self.disk_free_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Wants to be alone there.
    pub fn policy() -> AvailabilitySettings {
        AvailabilitySettings { owner_idle_secs_min: Some(60), ..AvailabilitySettings::default() }
    }
}

#[derive(Debug)]
pub struct Inhabited {
    machine: Host,
    owner: Owner,
}

impl Inhabited {
    pub fn new(trainer: PathBuf, owner: Owner) -> Self {
        Self { machine: Host::new(trainer), owner }
    }
}

impl Platform for Inhabited {
    fn network(&self) -> Arc<dyn Network> {
        self.machine.network()
    }

    fn look<'a>(&'a self, state: &'a Path) -> BoxFuture<'a, Inventory> {
        self.machine.look(state)
    }

    fn metrics<'a>(&'a self, _state: &'a Path) -> BoxFuture<'a, NodeMetrics> {
        let disk_free_bytes = Some(self.owner.disk_free_bytes.load(Ordering::Relaxed));
        std::future::ready(NodeMetrics { disk_free_bytes, ..NodeMetrics::default() }).boxed()
    }

    fn trainer(&self) -> &Path {
        self.machine.trainer()
    }

    fn calibrate(
        &self,
        device: Device,
        cpu_threads: u32,
    ) -> BoxFuture<'_, Result<Calibration, TrainerToolError>> {
        self.machine.calibrate(device, cpu_threads)
    }

    fn start_trainer(
        &self,
        order: &Path,
        log: &StderrLog,
        grew: Box<dyn Fn() + Send>,
    ) -> io::Result<Box<dyn Trainer>> {
        self.machine.start_trainer(order, log, grew)
    }

    fn start_answerer(&self, checkpoint: &Path, device: Device) -> io::Result<AnswererProcess> {
        self.machine.start_answerer(checkpoint, device)
    }

    fn usage<'a>(&'a self, _policy: &'a AvailabilitySettings) -> BoxFuture<'a, Usage> {
        let idle = if self.owner.is_there.load(Ordering::Relaxed) {
            Duration::ZERO
        } else {
            Duration::from_hours(1)
        };
        let problems = vec!["availability: a test sees nothing else".to_owned()];
        std::future::ready(Usage { owner_idle: Some(idle), problems, ..Usage::default() }).boxed()
    }

    fn end_orphan<'a>(&'a self, attempt: &'a Path) -> BoxFuture<'a, ()> {
        self.machine.end_orphan(attempt)
    }
}
