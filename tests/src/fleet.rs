//! A coordinator and some agents on this machine, each with a folder of its own.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::process::{PATIENCE, Process, binary};

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A running fleet. Everything ends with it.
pub struct Fleet {
    folder: TempDir,
    /// Where the coordinator listens: the same after a restart.
    pub address: String,
    /// The coordinator, unless a test has killed it.
    pub coordinator: Option<Process>,
    agents: BTreeMap<String, Process>,
    lease_secs: u64,
    /// The name of the coordinator's home.
    main: &'static str,
}

impl Fleet {
    /// Starts a coordinator alone, with leases of `lease_secs`.
    pub fn start(lease_secs: u64) -> Self {
        let mut fleet = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            address: "127.0.0.1:0".to_owned(),
            coordinator: None,
            agents: BTreeMap::new(),
            lease_secs,
            main: "main",
        };
        fleet.start_coordinator();
        fleet
    }

    /// A coordinator and agents called `names`, connected.
    pub fn with_agents(lease_secs: u64, names: &[&str]) -> Self {
        let mut fleet = Self::start(lease_secs);
        for name in names {
            fleet.start_agent(name);
        }
        for name in names {
            fleet.wait_for_node(name, "connected");
        }
        fleet
    }

    /// The coordinator's own `HATCHERY_HOME`.
    pub fn home(&self) -> PathBuf {
        self.folder.path().join(self.main)
    }

    /// From here on the coordinator and the person at its terminal have another home.
    pub fn move_home(&mut self, name: &'static str) {
        self.main = name;
    }

    /// A folder for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// `hatchery` with these arguments, in the coordinator's home.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_in(&self.home(), arguments)
    }

    /// `hatchery` with these arguments, in another home.
    pub fn command_in(&self, home: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("hatchery"));
        command.args(arguments).env("HATCHERY_HOME", home).current_dir(self.folder.path());
        for variable in ["HATCHERY_COORDINATOR", "HATCHERY_TRAINER", "HATCHERY_OUTPUT", "LD_LIBRARY_PATH"] {
            command.env_remove(variable);
        }
        command
    }

    /// Starts the coordinator, again at the address that it had before.
    pub fn start_coordinator(&mut self) {
        let lease = self.lease_secs.to_string();
        let mut process =
            Process::start(self.command(&["coordinator", "--listen", &self.address, "--lease-secs", &lease]));
        let line = process.wait_for_stderr("coordinator ready at ");
        line.rsplit(' ').next().expect("the line ends with the address").clone_into(&mut self.address);
        self.coordinator = Some(process);
    }

    /// Kills the coordinator as a power cut would.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.take().expect("the coordinator runs").kill();
    }

    /// Starts an agent in a home of its own; the first time it joins with a fresh join string.
    pub fn start_agent(&mut self, name: &str) {
        self.start_agent_with(name, &[]);
    }

    /// The same, with more arguments.
    pub fn start_agent_with(&mut self, name: &str, more: &[&str]) {
        self.start_agent_in(name, more, &[]);
    }

    /// The same, with more in its environment.
    pub fn start_agent_in(&mut self, name: &str, more: &[&str], environment: &[(&str, &str)]) {
        let home = self.agent_home(name);
        let joined = home.join("agent").join("credentials.toml").exists();
        let join = if joined { None } else { Some(self.token()) };
        let mut arguments = vec!["agent", "--name", name];
        if let Some(join) = &join {
            arguments.extend(["--join", join]);
        }
        arguments.extend(more);
        let mut command = self.command_in(&home, &arguments);
        command.envs(environment.iter().copied());
        let process = Process::start(command);
        self.agents.insert(name.to_owned(), process);
    }

    /// The home of the agent called `name`.
    pub fn agent_home(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("home-{name}"))
    }

    /// The agent called `name`.
    pub fn agent(&mut self, name: &str) -> &mut Process {
        self.agents.get_mut(name).expect("this agent was started")
    }

    /// A fresh join string for a machine.
    pub fn token(&self) -> String {
        self.json(&["token", "create"])["join_string"].as_str().expect("a join string").to_owned()
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Run {
        run(self.command(arguments))
    }

    /// Runs a command that must succeed, and reads its JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let run = run(self.command(&[arguments, &["--output", "json"]].concat()));
        assert_eq!(run.code, 0, "{arguments:?}: {}", run.stderr);
        serde_json::from_str(&run.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{}", run.stdout))
    }

    /// Submits a job with a small model over `data`, and gives its id.
    pub fn submit(&self, data: &Path, steps: u64, checkpoint_every: u64, more: &[&str]) -> String {
        let data = data.display().to_string();
        let (steps, every) =
            (format!("train.steps={steps}"), format!("train.checkpoint_every={checkpoint_every}"));
        let small = [
            "submit",
            "--data",
            &data,
            "--set",
            &steps,
            "--set",
            &every,
            "--set",
            "model.n_layer=2",
            "--set",
            "model.n_embd=32",
            "--set",
            "model.mlp_internal_dim_multiplier=8",
            "--set",
            "train.block=32",
            "--set",
            "train.batch=4",
            "--set",
            "train.validate_every=100000",
        ];
        self.json(&[&small, more].concat())["id"].as_str().expect("a job id").to_owned()
    }

    /// Follows a job until its view satisfies `enough`, and gives that view.
    pub fn watch(&self, job: &str, what: &str, enough: impl Fn(&Value) -> bool) -> Value {
        let mut watch = Process::start(self.command(&["watch", job, "--output", "json"]));
        let mut last = Value::Null;
        while let Some(line) = watch.next_line() {
            last = serde_json::from_str(&line).expect("watch prints a JSON value on each line");
            if enough(&last) {
                return last;
            }
        }
        panic!("the job ended before: {what}; its last view: {last:#}");
    }

    /// Follows a job until it has ended.
    pub fn watch_to_end(&self, job: &str) -> Value {
        self.watch(job, "its end", |view| {
            ["completed", "failed", "cancelled", "poisoned"].iter().any(|phase| view["phase"] == *phase)
        })
    }

    /// Waits until a node is in `state`.
    pub fn wait_for_node(&self, name: &str, state: &str) -> Value {
        self.wait_for(&["nodes"], &format!("node {name} is {state}"), |nodes| {
            nodes
                .as_array()
                .into_iter()
                .flatten()
                .find(|node| node["name"] == *name && node["state"] == *state)
                .cloned()
        })
    }

    /// Asks again and again until `pick` finds something in the answer.
    pub fn wait_for<T>(&self, arguments: &[&str], what: &str, pick: impl Fn(&Value) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.json(arguments);
            if let Some(found) = pick(&answer) {
                return found;
            }
            assert!(Instant::now() < deadline, "never: {what}; last answer: {answer:#}");
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Agents first: their trainers see the end of stdin and stop.
        self.agents.clear();
        self.coordinator = None;
    }
}

/// Runs a command to its end.
pub fn run(mut command: Command) -> Run {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    Run {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// Writes a corpus of plain sentences into `folder`: `files` markdown files, each of a few kilobytes.
pub fn corpus(folder: &Path, files: usize) -> PathBuf {
    const WORDS: [&str; 16] = [
        "the",
        "dragon",
        "hatchling",
        "learns",
        "a",
        "little",
        "of",
        "every",
        "text",
        "that",
        "it",
        "reads",
        "and",
        "answers",
        "at",
        "once",
    ];
    let corpus = folder.join("corpus");
    fs::create_dir_all(&corpus).expect("a folder for the corpus");
    let mut state = 7_u64;
    for file in 0..files {
        let mut text = format!("# Page {file}\n\n");
        for _ in 0..400 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text += WORDS[(state >> 33) as usize % WORDS.len()];
            text += if state >> 60 == 0 { ".\n" } else { " " };
        }
        fs::write(corpus.join(format!("page-{file:03}.md")), text).expect("a file of the corpus");
    }
    corpus
}

/// Lists the processes whose command line contains every one of `parts`.
pub fn processes_with(parts: &[&str]) -> Vec<u32> {
    let contains = |path: &Path| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        parts.iter().all(|part| line.contains(part))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| contains(&entry.path()))
        .filter_map(|entry| OsStr::to_str(&entry.file_name()).and_then(|name| name.parse().ok()))
        .collect()
}
