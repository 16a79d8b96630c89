//! A coordinator and agents as real processes, each with a home of its own below one folder.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{Daemon, GLANCE, Interrupt};

/// The coordinator among the names of a fleet: its home is also that of the person who types commands.
pub const COORDINATOR: &str = "coordinator";
/// The longest time for agents to join, look at their machine and measure it.
const NODES_WAIT: Duration = Duration::from_mins(2);
/// What a coordinator says once it is there, and how long that may take on a machine that is busy with tests.
const READY: &str = "coordinator ready at ";
const READY_WAIT: Duration = Duration::from_secs(90);

/// How a program is started for the home of this name: on which machine, with which settings.
type Launch<'a> = Box<dyn Fn(&str, &Path) -> Command + Send + Sync + 'a>;

/// What runs, and where its state is. Dropping it ends the agents first, so that their trainers stop, then the coordinator.
pub struct Fleet<'a> {
    agents: BTreeMap<String, Daemon>,
    coordinator: Option<Daemon>,
    /// Where the coordinator listens: the same after a restart.
    address: String,
    folder: PathBuf,
    hatchery: PathBuf,
    launch: Launch<'a>,
    interrupt: Interrupt,
    /// Whether processes are killed at their end without being asked first.
    is_killed_at_end: bool,
    /// The name of the coordinator's home.
    main: String,
}

impl<'a> Fleet<'a> {
    /// A fleet of the program `hatchery` below `folder`. Nothing runs yet.
    pub fn new(folder: &Path, hatchery: PathBuf, interrupt: &Interrupt) -> Self {
        Self {
            agents: BTreeMap::new(),
            coordinator: None,
            address: "127.0.0.1:0".to_owned(),
            folder: folder.to_owned(),
            hatchery,
            launch: Box::new(|_, program| Command::new(program)),
            interrupt: interrupt.clone(),
            is_killed_at_end: false,
            main: COORDINATOR.to_owned(),
        }
    }

    /// Starts programs in another way.
    #[must_use]
    pub fn launched_by(mut self, launch: impl Fn(&str, &Path) -> Command + Send + Sync + 'a) -> Self {
        self.launch = Box::new(launch);
        self
    }

    /// Has the coordinator listen here; else it is any free port of this machine.
    #[must_use]
    pub fn listening_at(mut self, address: &str) -> Self {
        address.clone_into(&mut self.address);
        self
    }

    /// Processes are killed at their end, without being asked first.
    #[must_use]
    pub fn killed_at_end(mut self) -> Self {
        self.is_killed_at_end = true;
        self
    }

    /// Starts the coordinator with more arguments and environment, and waits until it is ready.
    pub fn start_coordinator(&mut self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
        let mut command = self.command(&["coordinator", "--listen", &self.address]);
        command.args(arguments).envs(environment.iter().copied());
        let mut coordinator = self.spawn(COORDINATOR, &mut command)?;
        let line = coordinator.wait_for_line(READY, READY_WAIT, &self.interrupt)?;
        line.rsplit(' ').next().context("the line ends with the address")?.clone_into(&mut self.address);
        self.coordinator = Some(coordinator);
        Ok(())
    }

    /// Starts the agent of this name with more arguments and environment; the first time it joins.
    pub fn start_agent(
        &mut self,
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<()> {
        let home = self.agent_home(name);
        let mut command = self.command_in(&home, &["agent", "--name", name]);
        if !home.join("agent/credentials.toml").exists() {
            command.args(["--join", &self.token(name)?]);
        }
        command.args(arguments).envs(environment.iter().copied());
        let agent = self.spawn(name, &mut command)?;
        self.agents.insert(name.to_owned(), agent);
        Ok(())
    }

    fn spawn(&self, name: &str, command: &mut Command) -> Result<Daemon> {
        let daemon = Daemon::start(name, command, self.log(name))?;
        Ok(if self.is_killed_at_end { daemon.killed_at_end() } else { daemon })
    }

    /// Waits until so many nodes are connected.
    pub fn wait_for_nodes(&mut self, count: usize) -> Result<()> {
        let deadline = Instant::now() + NODES_WAIT;
        loop {
            let nodes = self.json(&["nodes"])?;
            let connected = nodes.as_array().into_iter().flatten();
            if connected.filter(|node| node["state"] == "connected").count() >= count {
                return Ok(());
            }
            for agent in self.agents.values_mut() {
                agent.check()?;
            }
            self.interrupt.check()?;
            if Instant::now() > deadline {
                bail!(
                    "the agents do not connect within {NODES_WAIT:?}; logs are in {}",
                    self.folder.display()
                );
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// Where the coordinator listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn coordinator(&mut self) -> Option<&mut Daemon> {
        self.coordinator.as_mut()
    }

    pub fn agent(&mut self, name: &str) -> Option<&mut Daemon> {
        self.agents.get_mut(name)
    }

    /// The process id of the coordinator, or of the agent of this name.
    pub fn pid(&self, name: &str) -> Option<u32> {
        if name == COORDINATOR { self.coordinator.as_ref() } else { self.agents.get(name) }.map(Daemon::pid)
    }

    /// Kills the coordinator as a power cut would.
    pub fn kill_coordinator(&mut self) {
        if let Some(mut coordinator) = self.coordinator.take() {
            coordinator.kill();
        }
    }

    /// Kills the agent of this name as a power cut would.
    pub fn kill_agent(&mut self, name: &str) {
        if let Some(mut agent) = self.agents.remove(name) {
            agent.kill();
        }
    }

    /// `HATCHERY_HOME` of the coordinator and of the person who types commands.
    pub fn home(&self) -> PathBuf {
        self.folder.join(&self.main)
    }

    /// From here on the coordinator and the person at its terminal have another home.
    pub fn move_home(&mut self, name: &str) {
        name.clone_into(&mut self.main);
    }

    /// The home of the agent called `name`.
    pub fn agent_home(&self, name: &str) -> PathBuf {
        self.folder.join(format!("home-{name}"))
    }

    /// What the coordinator, or the agent called `name`, has written.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// A `hatchery` command as the person types it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_in(&self.home(), arguments)
    }

    /// `hatchery` with these arguments, in another home.
    pub fn command_in(&self, home: &Path, arguments: &[&str]) -> Command {
        let name = home.file_name().unwrap_or_default().to_string_lossy();
        let mut command = (self.launch)(name.strip_prefix("home-").unwrap_or(&name), &self.hatchery);
        // Settings of the user's own fleet are not meant for this one.
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HATCHERY_")) {
            command.env_remove(name);
        }
        command.args(arguments).env("HATCHERY_HOME", home);
        command
    }

    /// Runs a command and reads the JSON that it prints.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let typed = || format!("`hatchery {}`", arguments.join(" "));
        let output = self.command(arguments).args(["--output", "json"]).output();
        let output = output.with_context(|| format!("cannot start {typed}", typed = typed()))?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} failed ({}): {}", typed(), output.status, message.trim());
        serde_json::from_slice(&output.stdout).with_context(|| format!("{} printed no JSON", typed()))
    }

    /// A fresh join string for a machine.
    pub fn token(&self, name: &str) -> Result<String> {
        let token = self.json(&["token", "create", "--name", name])?;
        Ok(token["join_string"]
            .as_str()
            .context("`hatchery token create` printed no join_string")?
            .to_owned())
    }

    /// Lets everything run on; returns the process ids.
    pub fn keep(mut self) -> Vec<u32> {
        let agents = std::mem::take(&mut self.agents).into_values();
        let daemons: Vec<Daemon> = agents.chain(self.coordinator.take()).collect();
        let pids = daemons.iter().map(Daemon::pid).collect();
        daemons.into_iter().for_each(Daemon::keep);
        pids
    }
}
