//! What an agent stands on: a machine with its network and its trainer. [`Host`](crate::Host) is the real one, and a
//! simulation puts something else in its place.

use std::{fmt::Debug, io, net::SocketAddr, path::Path, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use hatchery_common::{
    device::Device,
    node::{Inventory, NodeMetrics},
    trainer::{Calibration, TrainerCommand},
};
use hatchery_net::transport::{Listener, Network};

use crate::{
    machine::availability::{AvailabilitySettings, Usage},
    trainer::{answerer::AnswererProcess, process::Heard, stderr_log::StderrLog, tool::TrainerToolError},
};

/// A trainer at work. Dropping it ends it, and everything that it started.
pub trait Trainer: Debug + Send + Sync {
    fn id(&self) -> u32;

    /// Passes a command on. One that a trainer does not read is lost.
    fn tell(&self, command: TrainerCommand);

    /// Asks it to write a checkpoint and end.
    fn terminate(&self);

    /// Ends it, and everything that it started.
    fn kill(&self);

    /// Waits for what comes next. Can be dropped and called again without losing anything.
    fn hear(&mut self) -> BoxFuture<'_, Heard>;
}

/// What an agent stands on.
pub trait Platform: Debug + Send + Sync {
    /// The way to the coordinator.
    fn network(&self) -> Arc<dyn Network>;

    /// Begins to listen for other nodes. Where that cannot be, this node serves nobody.
    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        let problem = format!("cannot listen on {address} here");
        async { Err(io::Error::new(io::ErrorKind::Unsupported, problem)) }.boxed()
    }

    /// What the machine is and has. `state` is a folder on the file system whose size counts.
    fn look<'a>(&'a self, state: &'a Path) -> BoxFuture<'a, Inventory>;

    /// What the machine says of this moment. `state` is a folder on the file system whose free space counts.
    fn metrics<'a>(&'a self, state: &'a Path) -> BoxFuture<'a, NodeMetrics>;

    /// The program of the trainer.
    fn trainer(&self) -> &Path;

    /// How fast a device is, the processor with so many threads (0: as many as there are cores). Dropping the future ends the
    /// measurement.
    fn calibrate(
        &self,
        device: Device,
        cpu_threads: u32,
    ) -> BoxFuture<'_, Result<Calibration, TrainerToolError>>;

    /// Starts a trainer by the order in the file `order`, which lies in its attempt's folder. What it says for people
    /// goes to `log`, and `grew` is called when it did.
    fn start_trainer(
        &self,
        order: &Path,
        log: &StderrLog,
        grew: Box<dyn Fn() + Send>,
    ) -> io::Result<Box<dyn Trainer>>;

    /// Starts a process that answers from the checkpoint in a folder on a device. Where there is none, the processor answers
    /// alone.
    fn start_answerer(&self, checkpoint: &Path, device: Device) -> io::Result<AnswererProcess> {
        let problem = format!("cannot answer on {device} here from {}", checkpoint.display());
        Err(io::Error::new(io::ErrorKind::Unsupported, problem))
    }

    /// How the machine is used beside: what `policy` asks for.
    fn usage<'a>(&'a self, policy: &'a AvailabilitySettings) -> BoxFuture<'a, Usage>;

    /// Waits for the trainer that an earlier agent left in an attempt's folder, and ends it if it takes too long.
    fn end_orphan<'a>(&'a self, attempt: &'a Path) -> BoxFuture<'a, ()>;
}
