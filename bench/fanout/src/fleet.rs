//! A fleet of real processes: the coordinator on machine 0 holds a checkpoint, an agent on each other machine wants it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use hatchery_test_support::{self as support, Daemon, Interrupt, binary};
use serde_json::Value;
use tempfile::TempDir;

use super::command::output;
use super::log;
use super::network::Network;
use super::processor::{self, Taken};
use super::transfer::Transfer;

/// Where the coordinator listens.
const PORT: u16 = 4747;
/// The agents' setting without which they fetch from one another.
const PEERS_VARIABLE: &str = "HATCHERY_AGENT__PEERS__ENABLED";
/// The coordinator's setting of what it sends at most.
const COORDINATOR_LIMIT_VARIABLE: &str = "HATCHERY_COORDINATOR__UPLOAD_BYTES_PER_SEC_MAX";
const UPLOAD_LIMIT_VARIABLE: &str = "HATCHERY_AGENT__PEERS__UPLOAD_BYTES_PER_SEC_MAX";
const STAND_IN: &str = "fanout-stand-in";

#[derive(Clone)]
pub(super) struct Programs {
    pub(super) hatchery: PathBuf,
    stand_in: PathBuf,
    /// Whether agents fetch from one another.
    pub(super) knows_peers: bool,
}

impl Programs {
    /// Those in this program's folder.
    pub(super) fn find() -> Result<Self> {
        let (hatchery, stand_in) = (binary("hatchery")?, binary(STAND_IN)?);
        let mut command = Command::new(&hatchery);
        // Without a home there is no settings file of the user's that could be wrong.
        command
            .args(["agent", "--print-config"])
            .env("HATCHERY_HOME", "/nonexistent")
            .env(PEERS_VARIABLE, "false");
        let knows_peers = output(&mut command).is_ok();
        Ok(Self { hatchery, stand_in, knows_peers })
    }
}

/// How a fleet is to be.
pub(super) struct Wish<'a> {
    pub(super) megabytes: u64,
    pub(super) seed: u64,
    /// Whether agents may fetch from one another.
    pub(super) peers: bool,
    /// Agents that have joined but do not run yet.
    pub(super) late: &'a BTreeSet<usize>,
    /// One that is not like the others.
    pub(super) odd: Option<Odd<'a>>,
    /// What is different if machine 1 is to train meanwhile.
    pub(super) trains: Option<Trains<'a>>,
}

/// Machine 1 trains: it has processors of its own, and the others leave it something to send.
#[derive(Clone)]
pub(super) struct Trains<'a> {
    pub(super) trainer: &'a Path,
    /// As `taskset` takes them.
    pub(super) own_processors: String,
    pub(super) other_processors: String,
    /// What the coordinator sends at most, and each of the other nodes.
    pub(super) coordinator_bytes_per_sec: &'a str,
    pub(super) others_bytes_per_sec: &'a str,
}

/// An agent that runs another program.
#[derive(Clone, Copy)]
pub(super) struct Odd<'a> {
    pub(super) machine: usize,
    pub(super) program: &'a Path,
    /// A variable in its environment, and its value.
    pub(super) variable: (&'a str, &'a str),
}

/// A running fleet. It ends with this.
pub(super) struct Fleet<'a> {
    shared: RefCell<support::Fleet<'a>>,
    network: &'a Network,
    programs: &'a Programs,
    folder: TempDir,
    peers: bool,
    trains: Option<Trains<'a>>,
    checkpoint: String,
    bytes: u64,
}

impl<'a> Fleet<'a> {
    /// Starts everything, plants a checkpoint, and waits until all agents are connected.
    pub(super) fn start(
        network: &'a Network,
        programs: &'a Programs,
        interrupt: &Interrupt,
        wish: &Wish<'a>,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hatchery-bench-").tempdir()?;
        let (trains, odd) = (wish.trains.clone(), wish.odd);
        let launch = {
            let trains = trains.clone();
            move |name: &str, program: &Path| {
                let machine = machine_of(name);
                let odd = odd.filter(|odd| odd.machine == machine);
                launch(network, machine, odd.map_or(program, |odd| odd.program), trains.as_ref())
            }
        };
        let fleet = support::Fleet::new(folder.path(), programs.hatchery.clone(), interrupt)
            .launched_by(launch)
            .listening_at(&format!("0.0.0.0:{PORT}"))
            .killed_at_end();
        let mut fleet = Self {
            shared: RefCell::new(fleet),
            network,
            programs,
            folder,
            peers: wish.peers,
            trains,
            checkpoint: String::new(),
            bytes: 0,
        };
        let limit = fleet
            .trains
            .as_ref()
            .map(|trains| (COORDINATOR_LIMIT_VARIABLE, trains.coordinator_bytes_per_sec));
        let address = format!("{}:{PORT}", network.address(0));
        fleet.shared.borrow_mut().start_coordinator(&["--advertise", &address], limit.as_slice())?;
        fleet.plant(wish)?;
        for machine in 1..network.links().len() {
            let odd = wish.odd.filter(|odd| odd.machine == machine);
            fleet.start_agent(machine, odd.map(|odd| odd.variable))?;
        }
        fleet.shared.borrow_mut().wait_for_nodes(network.links().len() - 1)?;
        for machine in wish.late {
            fleet.shared.borrow_mut().kill_agent(&node(*machine));
        }
        Ok(fleet)
    }

    fn plant(&mut self, wish: &Wish) -> Result<()> {
        let join = self.shared.borrow().token("planter")?;
        let mut command = self.network.command(0, &self.programs.stand_in);
        command.arg("plant").arg("--home").arg(self.shared.borrow().home()).args(["--join", &join]);
        command.args(["--megabytes", &wish.megabytes.to_string(), "--seed", &wish.seed.to_string()]);
        let planted: Value = serde_json::from_str(&output(&mut command)?)?;
        planted["checkpoint"].as_str().context("nothing was planted")?.clone_into(&mut self.checkpoint);
        self.bytes = planted["bytes"].as_u64().context("nothing was planted")?;
        Ok(())
    }

    /// Starts an agent that has joined before.
    pub(super) fn start_late(&self, machine: usize) -> Result<()> {
        self.start_agent(machine, None)
    }

    fn start_agent(&self, machine: usize, variable: Option<(&str, &str)>) -> Result<()> {
        // Without a trainer nothing is calibrated.
        let mut trainer = self.folder.path().join("no-trainer");
        let mut environment = Vec::from_iter(variable);
        if let Some(trains) = &self.trains {
            if machine == 1 {
                trains.trainer.clone_into(&mut trainer);
            } else {
                environment.push((UPLOAD_LIMIT_VARIABLE, trains.others_bytes_per_sec));
            }
        }
        if self.programs.knows_peers && !self.peers {
            environment.push((PEERS_VARIABLE, "false"));
        }
        let trainer = trainer.display().to_string();
        environment.push(("HATCHERY_TRAINER", &trainer));
        self.shared.borrow_mut().start_agent(&node(machine), &[], &environment)
    }

    /// The process of a machine.
    pub(super) fn process(&self, machine: usize) -> Option<u32> {
        self.shared.borrow().pid(&if machine == 0 { support::COORDINATOR.to_owned() } else { node(machine) })
    }

    /// Writes and removes a file of so many bytes where the nodes keep theirs, twice. A virtual machine gives its host what
    /// memory it has not used for a while, and gets it back page by page as it is touched: the first time pays for that,
    /// so that the nodes need not. Returned is what the second took, which is what the bytes cost on their way into files
    /// whoever writes them.
    pub(super) fn touch_memory(&self, bytes: u64) -> Result<Taken> {
        let path = self.folder.path().join("memory");
        let part = vec![0; 256 << 10];
        let mut taken = Taken::default();
        for _ in 0..2 {
            let before = processor::of_process(std::process::id()).context("cannot read /proc")?;
            let mut file = fs::File::create(&path)?;
            for _ in 0..bytes.div_ceil(part.len() as u64) {
                file.write_all(&part)?;
            }
            fs::remove_file(&path)?;
            taken = processor::of_process(std::process::id()).context("cannot read /proc")?.since(before);
        }
        Ok(taken)
    }

    /// A session's round trips, told from a machine until what is returned is dropped, into the file returned.
    pub(super) fn probe(&self, machine: usize) -> Result<(Daemon, PathBuf)> {
        let join = self.shared.borrow().token("probe")?;
        let mut command = self.network.command(machine, &self.programs.stand_in);
        command.args(["probe", "--join", &join]);
        let log = self.folder.path().join("probe.log");
        Ok((Daemon::start_with_open_stdin("probe", &mut command, log.clone())?.killed_at_end(), log))
    }

    /// How often an agent has lost its session.
    pub(super) fn sessions_lost(&self) -> usize {
        let logs = (1..self.network.links().len()).map(|machine| self.read_log(machine));
        logs.map(|log| log::count(&log, &["no session with the coordinator"])).sum()
    }

    /// Has one node fetch the checkpoint.
    pub(super) fn push_to(&self, machine: usize) -> Result<()> {
        self.person(&["push", &self.checkpoint, "--to", &format!("node-{machine}")]).map(drop)
    }

    /// Whether a node has it.
    pub(super) fn has_fetched(&self, machine: usize) -> bool {
        log::time_of(&self.read_log(machine), &["checkpoint fetched", &self.checkpoint]).is_some()
    }

    /// A command of the person at the coordinator's machine.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        self.shared.borrow().command(arguments)
    }

    /// Runs such a command and reads the JSON that it prints.
    pub(super) fn json(&self, arguments: &[&str]) -> Result<Value> {
        self.shared.borrow().json(arguments)
    }

    fn person(&self, arguments: &[&str]) -> Result<String> {
        output(self.command(arguments).args(["--output", "json"]))
    }

    /// A folder for files of the bench's own.
    pub(super) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    fn read_log(&self, machine: usize) -> String {
        fs::read_to_string(self.shared.borrow().log(&node(machine))).unwrap_or_default()
    }
}

impl Transfer for &Fleet<'_> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn begin(&mut self) -> Result<f64> {
        self.person(&["push", &self.checkpoint, "--to", "all"])?;
        let events = self.person(&["events"])?;
        let times = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut pushed = times.filter(|event| event["kind"] == "rollout_started");
        let at = pushed
            .next_back()
            .and_then(|event| event["at"].as_u64())
            .context("the push is not in the events")?;
        Ok(at as f64 / 1000.0)
    }

    fn finished(&mut self) -> Result<Vec<Option<f64>>> {
        let words = ["checkpoint fetched", self.checkpoint.as_str()];
        Ok((1..self.network.links().len())
            .map(|machine| log::time_of(&self.read_log(machine), &words))
            .collect())
    }

    fn processes(&self) -> Vec<u32> {
        (0..self.network.links().len()).filter_map(|machine| self.process(machine)).collect()
    }
}

/// What the agent on a machine is called.
fn node(machine: usize) -> String {
    format!("node-{machine}")
}

/// The machine of a node, or the coordinator's.
fn machine_of(name: &str) -> usize {
    name.strip_prefix("node-").and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A program on a machine, on the processors that it may have.
fn launch(network: &Network, machine: usize, program: &Path, trains: Option<&Trains>) -> Command {
    let Some(trains) = trains else { return network.command(machine, program) };
    let processors = if machine == 1 { &trains.own_processors } else { &trains.other_processors };
    let mut command = network.command(machine, "taskset");
    command.args(["--cpu-list", processors]).arg(program);
    command
}
