//! A machine with an agent on it: what it is, and the trainers that run there.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use hatchery_agent::{
    AvailabilitySettings, Platform, Trainer, Usage,
    trainer::{process::Heard, stderr_log::StderrLog, tool::TrainerToolError},
};
use hatchery_common::{
    device::Device,
    node::{Inventory, NodeDevice, NodeMetrics, TrainerState},
    trainer::{AttemptOrder, Calibration, TrainerCommand},
};
use hatchery_net::transport::{Listener, Network};
use tokio::{sync::mpsc, time::sleep};

use crate::{
    clock,
    history::{History, lock},
    network::{SideDoor, Wires},
    trainer::FakeTrainer,
};

/// How long an orphan may go on before it is killed; as the agent's own.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// So long after its owner has sat down a machine begins nothing any more: it looks each second.
const OWNER_NOTICED_WITHIN: Duration = Duration::from_secs(2);
const MEASURE_TAKES: Duration = Duration::from_millis(300);

/// A machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Which of the simulation's machines it is; its clocks are found by that.
    pub(crate) number: usize,
    /// Stands where the trainer's program would.
    program: PathBuf,
    step_every: Duration,
    processes: Arc<Mutex<Processes>>,
    history: Arc<Mutex<History>>,
}

#[derive(Debug, Default)]
struct Processes {
    last_id: u32,
    running: Vec<FakeTrainer>,
    /// Trainers outlive the agent that goes now.
    agent_crashes: bool,
    /// Since when its owner has been there.
    owner_since: Option<Duration>,
}

impl Machine {
    pub(crate) fn new(
        number: usize,
        program: PathBuf,
        step_every: Duration,
        history: Arc<Mutex<History>>,
    ) -> Self {
        Self { number, program, step_every, processes: Arc::default(), history }
    }

    /// Everything that runs here goes on until now.
    pub(crate) fn advance(&self) {
        let (now, boot) = (clock::now(), clock::boot_of(self.number));
        lock(&self.processes).running.retain_mut(|trainer| trainer.advance(now, boot));
    }

    /// Ends all trainers, as when the power goes.
    pub(crate) fn power_off(&self) {
        let now = clock::now();
        lock(&self.processes).running.drain(..).for_each(|trainer| trainer.killed(now));
    }

    /// While `crash` ends the agent, trainers stay; they see the end of their stdin, and stop.
    pub(crate) fn agent_crashes(&self, crash: impl FnOnce()) {
        lock(&self.processes).agent_crashes = true;
        crash();
        let mut processes = lock(&self.processes);
        processes.agent_crashes = false;
        processes.running.iter_mut().for_each(|trainer| trainer.obey(TrainerCommand::Stop));
    }

    /// A trainer dies by itself.
    pub(crate) fn trainer_crashes(&self) {
        let first = lock(&self.processes).running.first().map(|trainer| trainer.id);
        if let Some(id) = first {
            self.kill(id);
        }
    }

    /// A trainer hangs from here on, and still makes steps.
    pub(crate) fn trainer_turns_deaf(&self) {
        if let Some(trainer) = lock(&self.processes).running.first_mut() {
            trainer.is_deaf = true;
        }
    }

    /// The owner sits down here, or leaves.
    pub(crate) fn owner_is_there(&self, is_there: bool) {
        lock(&self.processes).owner_since = is_there.then(clock::now);
    }

    fn kill(&self, id: u32) {
        let now = clock::now();
        lock(&self.processes).running.retain(|trainer| {
            let stays = trainer.id != id;
            if !stays {
                trainer.killed(now);
            }
            stays
        });
    }

    fn tell(&self, id: u32, command: TrainerCommand) {
        let mut processes = lock(&self.processes);
        if let Some(trainer) = processes.running.iter_mut().find(|trainer| trainer.id == id) {
            trainer.obey(command);
        }
    }

    fn runs_in(&self, attempt: &Path) -> Option<u32> {
        let processes = lock(&self.processes);
        processes.running.iter().find(|trainer| trainer.attempt == attempt).map(|trainer| trainer.id)
    }
}

impl Platform for Machine {
    fn network(&self) -> Arc<dyn Network> {
        Arc::new(Wires)
    }

    fn listen(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        async move {
            let listener: Box<dyn Listener> = Box::new(SideDoor::open(address).await?);
            Ok(listener)
        }
        .boxed()
    }

    fn look<'a>(&'a self, _state: &'a Path) -> BoxFuture<'a, Inventory> {
        let device = NodeDevice {
            device: Device::CPU,
            name: "a processor".to_owned(),
            memory_bytes: 8 << 30,
            bf16: false,
            driver: None,
            power_watts_max: None,
            calibration: None,
        };
        let inventory = Inventory {
            hostname: format!("machine-{}", self.number),
            os: "a simulation".to_owned(),
            cores: 2,
            memory_bytes: 8 << 30,
            disk_bytes: 1 << 40,
            trainer: TrainerState::Ready { version: "0.0.0".to_owned(), libtorch: "2.11.0".to_owned() },
            devices: vec![device],
            ..Inventory::default()
        };
        std::future::ready(inventory).boxed()
    }

    fn metrics<'a>(&'a self, _state: &'a Path) -> BoxFuture<'a, NodeMetrics> {
        let metrics = NodeMetrics { disk_free_bytes: Some(1 << 39), ..NodeMetrics::default() };
        std::future::ready(metrics).boxed()
    }

    fn trainer(&self) -> &Path {
        &self.program
    }

    fn calibrate(&self, device: Device, _: u32) -> BoxFuture<'_, Result<Calibration, TrainerToolError>> {
        let steps_per_sec = 1.0 / self.step_every.as_secs_f64();
        async move {
            sleep(MEASURE_TAKES).await;
            Ok(Calibration { device, steps_per_sec, flops_per_sec: 1e9 * steps_per_sec, version: 1 })
        }
        .boxed()
    }

    fn start_trainer(
        &self,
        order: &Path,
        _log: &StderrLog,
        _grew: Box<dyn Fn() + Send>,
    ) -> io::Result<Box<dyn Trainer>> {
        let attempt = order.parent().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let order: AttemptOrder = serde_json::from_slice(&std::fs::read(order)?)?;
        let now = clock::now();
        let owner_since = lock(&self.processes).owner_since;
        if owner_since.is_some_and(|since| now > since + OWNER_NOTICED_WITHIN) {
            let (job, number) = (order.attempt.job.short(), self.number);
            let problem = format!("a trainer of {job} begins on machine {number}, which its owner is using");
            lock(&self.history).problem(problem);
        }
        let life = lock(&self.history).began(order.attempt, self.number);
        let mut processes = lock(&self.processes);
        processes.last_id += 1;
        let id = processes.last_id;
        let history = Arc::clone(&self.history);
        let (trainer, heard) = FakeTrainer::start(id, attempt, order, self.step_every, life, now, history)?;
        processes.running.push(trainer);
        Ok(Box::new(Handle { id, machine: self.clone(), heard }))
    }

    fn usage<'a>(&'a self, _policy: &'a AvailabilitySettings) -> BoxFuture<'a, Usage> {
        let is_used = lock(&self.processes).owner_since.is_some();
        let idle = if is_used { Duration::ZERO } else { Duration::from_hours(1) };
        std::future::ready(Usage { owner_idle: Some(idle), ..Usage::default() }).boxed()
    }

    fn end_orphan<'a>(&'a self, attempt: &'a Path) -> BoxFuture<'a, ()> {
        async move {
            let until = clock::now() + ORPHAN_GRACE;
            while let Some(id) = self.runs_in(attempt) {
                if clock::now() >= until {
                    self.kill(id);
                }
                sleep(LOOK_EVERY).await;
            }
        }
        .boxed()
    }
}

/// A trainer in the agent's hands.
#[derive(Debug)]
struct Handle {
    id: u32,
    machine: Machine,
    heard: mpsc::UnboundedReceiver<Heard>,
}

impl Trainer for Handle {
    fn id(&self) -> u32 {
        self.id
    }

    fn tell(&self, command: TrainerCommand) {
        self.machine.tell(self.id, command);
    }

    fn terminate(&self) {
        self.machine.tell(self.id, TrainerCommand::Stop);
    }

    fn kill(&self) {
        self.machine.kill(self.id);
    }

    fn hear(&mut self) -> BoxFuture<'_, Heard> {
        async {
            match self.heard.recv().await {
                Some(heard) => heard,
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !lock(&self.machine.processes).agent_crashes {
            self.machine.kill(self.id);
        }
    }
}
