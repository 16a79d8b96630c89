//! The fleet that is hurt: a coordinator on a small disk, agents with fake trainers, and a proxy before each of them and
//! before those who type commands.

use std::{
    env, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use hatchery_test_support::{Daemon, Interrupt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    disk::Disk,
    history::{History, now_ms},
    member::Member,
    proxy::Proxy,
};
use crate::process::{PATIENCE, binary, fake_trainer};

/// Set to anything, it keeps what would be removed at the end.
const KEEP_VARIABLE: &str = "HATCHERY_CHAOS_KEEP";
/// How long a start may take, on a machine that is busy with other tests.
const START_WITHIN: Duration = Duration::from_mins(1);
/// How long a command that must succeed may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(45);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Lines of the coordinator's log in an error.
const FAILURE_LINES_MAX: usize = 20;

/// How the fleet is set up.
#[derive(Clone, Debug, Default)]
pub struct SiteSettings {
    /// Length of a lease.
    pub lease_secs: u64,
    pub agents: usize,
    /// Fault points that every process of the fleet has armed all the time.
    pub points: String,
}

pub struct Site {
    folder: TempDir,
    settings: SiteSettings,
    pub disk: Disk,
    address: SocketAddr,
    coordinator: Mutex<Option<Daemon>>,
    agents: Vec<Member>,
    /// Before those who type.
    pub people: Proxy,
    pub history: History,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Typed {
    /// The exit code; none: it took too long and was killed.
    pub code: Option<i32>,
    pub stdout: String,
    /// What it said besides.
    pub stderr: String,
}

impl Typed {
    /// What it printed as JSON, if it succeeded.
    pub fn json(&self) -> Option<Value> {
        if self.code == Some(0) { serde_json::from_str(&self.stdout).ok() } else { None }
    }
}

impl Site {
    /// Starts a coordinator, and agents that have joined and are connected through their proxies.
    pub fn build(settings: SiteSettings) -> io::Result<Self> {
        let mut folder = tempfile::Builder::new().prefix("hatchery-chaos-").tempdir()?;
        folder.disable_cleanup(env::var_os(KEEP_VARIABLE).is_some());
        let disk = Disk::mount(&folder.path().join("disk"), &folder.path().join("disk.log"))?;
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut site = Self {
            folder,
            settings,
            disk,
            address: any,
            coordinator: Mutex::new(None),
            agents: Vec::new(),
            people: Proxy::start(any)?,
            history: History::default(),
        };
        let daemon = site.spawn_coordinator("", &[])?;
        site.address = daemon.1.ok_or_else(|| site.failure("the coordinator does not start"))?;
        *lock(&site.coordinator) = Some(daemon.0);
        site.people = Proxy::start(site.address)?;
        for index in 0..site.settings.agents {
            let member = site.join(["ada", "bob", "eve", "kim"][index % 4])?;
            site.agents.push(member);
        }
        for member in &site.agents {
            site.start_agent(member, "")?;
        }
        Ok(site)
    }

    fn failure(&self, what: &str) -> io::Error {
        let log = fs::read_to_string(self.log("coordinator")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(FAILURE_LINES_MAX)..];
        io::Error::other(format!("{what}; the coordinator's last lines:\n{}", last.join("\n")))
    }

    /// The folder of everything, for what a test writes itself.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the folder when all is over, and says where it is.
    pub fn keep(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// What `who` has written.
    pub fn log(&self, who: &str) -> PathBuf {
        self.folder.path().join(format!("{who}.log"))
    }

    /// The steps that trainers began.
    pub fn steps_file(&self) -> PathBuf {
        self.folder.path().join("steps.jsonl")
    }

    /// The coordinator's own folder, as it is seen from here.
    pub fn coordinator_state(&self) -> PathBuf {
        self.disk.seen_from_here().join("coordinator")
    }

    /// Length of a lease.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.settings.lease_secs)
    }

    pub fn agents(&self) -> &[Member] {
        &self.agents
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("main")
    }

    fn environment(&self, command: &mut Command, home: &Path, points: &str) {
        for variable in
            ["HATCHERY_COORDINATOR", "HATCHERY_TRAINER", "HATCHERY_OUTPUT", "LD_LIBRARY_PATH", "FAILPOINTS"]
        {
            command.env_remove(variable);
        }
        command.env("HATCHERY_HOME", home).current_dir(self.folder.path());
        if !points.is_empty() {
            command.env("FAILPOINTS", points);
        }
    }

    fn points(&self, more: &str) -> String {
        [&self.settings.points, more]
            .into_iter()
            .filter(|points| !points.is_empty())
            .collect::<Vec<_>>()
            .join(";")
    }

    fn spawn_coordinator(
        &self,
        points: &str,
        settings: &[(&str, &str)],
    ) -> io::Result<(Daemon, Option<SocketAddr>)> {
        let mut command = self.disk.command(&binary("hatchery"));
        let (listen, lease) = (self.address.to_string(), self.settings.lease_secs.to_string());
        command.args(["coordinator", "--listen", &listen, "--lease-secs", &lease]);
        self.environment(&mut command, &self.home(), &self.points(points));
        command.env("HATCHERY_COORDINATOR__STATE", self.disk.folder().join("coordinator"));
        command.env("HATCHERY_COORDINATOR__CLIENT", self.home().join("client"));
        // The disk is to be full to its last byte.
        command.env("HATCHERY_COORDINATOR__DISK_FREE_BYTES_MIN", "0");
        command.envs(settings.iter().copied());
        self.history.coordinator_started(now_ms());
        let mut daemon = spawn("coordinator", &mut command, self.log("coordinator"))?;
        let line = daemon.wait_for_line("coordinator ready at ", START_WITHIN, &Interrupt::default());
        let address = line.ok().and_then(|line| line.rsplit(' ').next()?.parse().ok());
        Ok((daemon, address))
    }

    /// Starts the coordinator, if it does not run, with `points` armed beside those that always are; whether it answers.
    pub fn start_coordinator(&self, points: &str, settings: &[(&str, &str)]) -> io::Result<bool> {
        let mut slot = lock(&self.coordinator);
        if let Some(daemon) = slot.as_mut() {
            if !daemon.has_ended() {
                return Ok(true);
            }
            self.note_end("the coordinator", daemon);
        }
        let (daemon, address) = self.spawn_coordinator(points, settings)?;
        *slot = Some(daemon);
        Ok(address.is_some())
    }

    /// Whoever ends a process takes it out of its slot; one that has ended in there did so by itself.
    fn note_end(&self, who: &str, daemon: &Daemon) {
        let output = daemon.output();
        let last = output.lines().next_back().unwrap_or_default();
        self.history.records().unexpected_ends.push(format!("{who} ended by itself: {last}"));
    }

    /// Kills the coordinator as a power cut would.
    pub fn kill_coordinator(&self) {
        if let Some(mut daemon) = lock(&self.coordinator).take() {
            daemon.kill();
        }
    }

    /// Waits until the coordinator has ended by itself; whether it has.
    pub fn wait_for_coordinators_end(&self, within: Duration) -> bool {
        lock(&self.coordinator).as_mut().is_none_or(|daemon| daemon.wait(within).is_some())
    }

    /// Sends the coordinator a signal.
    pub fn signal_coordinator(&self, signal: Signal) {
        if let Some(daemon) = lock(&self.coordinator).as_ref() {
            daemon.signal(signal);
        }
    }

    /// Resident memory of the coordinator in bytes, if it runs.
    pub fn coordinator_memory_bytes(&self) -> Option<u64> {
        let pid = lock(&self.coordinator).as_ref()?.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    }

    /// Lets a machine join, and tells its agent that the coordinator is where the proxy listens.
    fn join(&self, name: &str) -> io::Result<Member> {
        let home = self.folder.path().join(format!("home-{name}"));
        let token = self.must_json(&["token", "create"])?;
        let token = token["join_string"].as_str().unwrap_or_default();
        let mut command = Command::new(binary("hatchery"));
        command.args(["agent", "--name", name, "--join", token]);
        self.environment(&mut command, &home, "");
        let mut daemon = spawn(name, &mut command, self.log(name))?;
        daemon
            .wait_for_line("joined as", START_WITHIN, &Interrupt::default())
            .map_err(|error| self.failure(&format!("{name} cannot join: {error}")))?;
        daemon.kill();
        let proxy = Proxy::start(self.address)?;
        let credentials = home.join("agent").join("credentials.toml");
        let text = fs::read_to_string(&credentials)?;
        let moved = text.replace(&self.address.to_string(), &proxy.address().to_string());
        if moved == text {
            return Err(io::Error::other(format!("{} does not name the coordinator", credentials.display())));
        }
        fs::write(&credentials, moved)?;
        Ok(Member { name: name.to_owned(), home, proxy, daemon: Mutex::new(None) })
    }

    /// Starts an agent, if it does not run, with `points` armed.
    pub fn start_agent(&self, member: &Member, points: &str) -> io::Result<()> {
        let mut slot = lock(&member.daemon);
        if let Some(daemon) = slot.as_mut() {
            if !daemon.has_ended() {
                return Ok(());
            }
            self.note_end(&member.name, daemon);
        }
        let mut command = Command::new(binary("hatchery"));
        command.args(["agent", "--name", &member.name]);
        self.environment(&mut command, &member.home, &self.points(points));
        command.env("HATCHERY_TRAINER", fake_trainer()).env("FAKE_TRAINER_HISTORY", self.steps_file());
        command.env("HATCHERY_AGENT__CALIBRATE", "false").env("HATCHERY_AGENT__FREE_DISK_BYTES_MIN", "0");
        *slot = Some(spawn(&member.name, &mut command, self.log(&member.name))?);
        Ok(())
    }

    /// `hatchery` with these arguments, through the proxy of those who type; killed when it takes too long.
    pub fn type_in(&self, arguments: &[&str], within: Duration) -> Typed {
        let address = self.people.address().to_string();
        self.run(&[&["--coordinator", &address], arguments].concat(), within)
    }

    /// The same past the proxy, for the test's own questions.
    pub fn ask(&self, arguments: &[&str]) -> Typed {
        self.run(arguments, COMMAND_WITHIN)
    }

    /// The answer of a command that must succeed.
    pub fn must_json(&self, arguments: &[&str]) -> io::Result<Value> {
        let typed = self.ask(&[arguments, &["--output", "json"]].concat());
        typed.json().ok_or_else(|| self.failure(&format!("{arguments:?} gave {typed:?}")))
    }

    /// Looks again and again until `pick` finds something.
    pub fn wait_for<T>(&self, what: &str, pick: impl Fn() -> Option<T>) -> io::Result<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = pick() {
                return Ok(found);
            }
            if Instant::now() >= until {
                return Err(self.failure(&format!("never: {what}")));
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until a job is as `is` says, and gives its view.
    pub fn wait_for_job(&self, job: &str, what: &str, is: impl Fn(&Value) -> bool) -> io::Result<Value> {
        self.wait_for(&format!("job {job} {what}"), || {
            self.ask(&["job", job, "--output", "json"]).json().filter(|view| is(view))
        })
    }

    /// The agent's machine that is called `name`.
    pub fn agent(&self, name: &str) -> io::Result<&Member> {
        let found = self.agents.iter().find(|member| member.name == name);
        found.ok_or_else(|| io::Error::other(format!("there is no agent {name}")))
    }

    fn run(&self, arguments: &[&str], within: Duration) -> Typed {
        let mut command = Command::new(binary("hatchery"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.environment(&mut command, &self.home(), "");
        let failed =
            |error: io::Error| Typed { code: Some(-1), stdout: String::new(), stderr: error.to_string() };
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return failed(error),
        };
        let pid = Pid::from_child(&child);
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || sender.send(child.wait_with_output()));
        let (output, killed) = if let Ok(output) = ended.recv_timeout(within) {
            (Ok(output), false)
        } else {
            // It may have ended just now.
            let _ended = kill_process(pid, Signal::KILL);
            (ended.recv(), true)
        };
        match output {
            Ok(Ok(output)) => Typed {
                code: if killed { None } else { Some(output.status.code().unwrap_or(-1)) },
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
            Ok(Err(error)) => failed(error),
            Err(error) => failed(io::Error::other(error)),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for member in &self.agents {
            for trainer in member.trainers() {
                let _ended = kill_process(trainer, Signal::CONT);
            }
            member.kill();
        }
        self.kill_coordinator();
    }
}

fn spawn(name: &str, command: &mut Command, log: PathBuf) -> io::Result<Daemon> {
    Ok(Daemon::start_in_our_group(name, command, log).map_err(io::Error::other)?.killed_at_end())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
