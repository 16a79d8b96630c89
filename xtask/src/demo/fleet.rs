//! A coordinator and two agents on this machine, as a user would start them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hatchery_test_support::{Daemon, GLANCE, Interrupt};
use serde_json::Value;

use crate::cargo::Binaries;

pub(crate) const NODES: [&str; 2] = ["alder", "birch"];
/// How long the agents may take to join, look at their machine and measure it.
const NODES_WAIT: Duration = Duration::from_mins(2);

/// What runs, and where its state is. Dropping it ends the agents first, then the coordinator.
pub(crate) struct Fleet {
    agents: Vec<Daemon>,
    coordinator: Option<Daemon>,
    binaries: Binaries,
    folder: PathBuf,
    interrupt: Interrupt,
    /// Where the coordinator listens.
    pub(crate) address: String,
}

impl Fleet {
    /// Starts everything below `folder` and waits until both nodes are there.
    pub(crate) fn start(binaries: Binaries, folder: PathBuf, interrupt: &Interrupt) -> Result<Self> {
        let interrupt = interrupt.clone();
        let mut fleet = Self {
            agents: Vec::new(),
            coordinator: None,
            binaries,
            folder,
            interrupt,
            address: String::new(),
        };
        let mut command = fleet.command(&["coordinator", "--listen", "127.0.0.1:0"]);
        let mut coordinator = Daemon::start("coordinator", &mut command, fleet.log("coordinator"))?;
        fleet.address = coordinator.wait_for_line("coordinator ready at ", &fleet.interrupt)?;
        fleet.coordinator = Some(coordinator);
        for node in NODES {
            let token = fleet.json(&["token", "create", "--name", node])?;
            let join =
                token["join_string"].as_str().context("`hatchery token create` printed no join_string")?;
            let mut command = fleet.command_of(&fleet.home(node), &["agent", "--join", join]);
            command.env("HATCHERY_TRAINER", &fleet.binaries.trainer);
            fleet.agents.push(Daemon::start("agent", &mut command, fleet.log(node))?);
        }
        fleet.wait_for_nodes()?;
        Ok(fleet)
    }

    fn wait_for_nodes(&mut self) -> Result<()> {
        let deadline = Instant::now() + NODES_WAIT;
        loop {
            let nodes = self.json(&["nodes"])?;
            let is_ready = |node: &Value| node["state"] == "connected";
            if nodes
                .as_array()
                .is_some_and(|nodes| nodes.iter().filter(|node| is_ready(node)).count() == NODES.len())
            {
                return Ok(());
            }
            for agent in &mut self.agents {
                agent.check()?;
            }
            self.interrupt.check()?;
            if Instant::now() > deadline {
                bail!(
                    "the agents do not come up within {NODES_WAIT:?}; logs are in {}",
                    self.folder.display()
                );
            }
            std::thread::sleep(GLANCE * 4);
        }
    }

    fn home(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// The folder that the person's commands work with.
    pub(crate) fn person(&self) -> PathBuf {
        self.home("coordinator")
    }

    /// A `hatchery` command as the person types it.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(&self.person(), arguments)
    }

    fn command_of(&self, home: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binaries.hatchery);
        command.args(arguments);
        // Settings of the user's own fleet are not meant for this one.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HATCHERY_"))
        {
            command.env_remove(name);
        }
        command.env("HATCHERY_HOME", home);
        command
    }

    /// Whether the demo is to end.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupt.check().is_err()
    }

    /// Runs a command with the terminal as its own; it must succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<()> {
        let status = self.interrupt.run(&mut self.command(arguments))?;
        if !status.success() {
            bail!("`hatchery {}` failed ({status})", arguments[0]);
        }
        Ok(())
    }

    /// Runs a command and reads the JSON that it prints.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output =
            self.command(arguments).args(["--output", "json"]).output().context("cannot start hatchery")?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            bail!("`hatchery {}` failed ({}): {message}", arguments.join(" "), output.status);
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`hatchery {} --output json` printed no JSON", arguments.join(" ")))
    }

    /// Lets everything run on; returns the process ids.
    pub(crate) fn keep(mut self) -> Vec<u32> {
        let daemons: Vec<Daemon> = self.agents.drain(..).chain(self.coordinator.take()).collect();
        let pids = daemons.iter().map(Daemon::pid).collect();
        daemons.into_iter().for_each(Daemon::keep);
        pids
    }
}
