//! A coordinator and some agents on this machine, as tests have them.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Instant,
};

use hatchery_test_support::{Daemon, Interrupt};
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

/// A running fleet, for a test: what should work and does not ends it. Everything ends with it.
pub struct Fleet {
    shared: hatchery_test_support::Fleet<'static>,
    folder: TempDir,
    lease_secs: u64,
    interrupt: Interrupt,
}

impl Deref for Fleet {
    type Target = hatchery_test_support::Fleet<'static>;

    fn deref(&self) -> &Self::Target {
        &self.shared
    }
}

impl Fleet {
    /// Starts a coordinator alone, with leases of `lease_secs`.
    pub fn start(lease_secs: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let interrupt = Interrupt::default();
        let here = folder.path().to_owned();
        let fleet = hatchery_test_support::Fleet::new(folder.path(), binary("hatchery"), &interrupt);
        let fleet = fleet.killed_at_end().launched_by(move |_, program| {
            let mut command = Command::new(program);
            command.current_dir(&here).env_remove("LD_LIBRARY_PATH");
            command
        });
        let mut fleet = Self { shared: fleet, folder, lease_secs, interrupt };
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

    /// From here on the coordinator and the person at its terminal have another home.
    pub fn move_home(&mut self, name: &'static str) {
        self.shared.move_home(name);
    }

    /// A folder for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the coordinator, again at the address that it had before.
    pub fn start_coordinator(&mut self) {
        let lease = self.lease_secs.to_string();
        self.shared.start_coordinator(&["--lease-secs", &lease], &[]).expect("it starts");
    }

    /// Kills the coordinator as a power cut would.
    pub fn kill_coordinator(&mut self) {
        self.shared.kill_coordinator();
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
        self.shared.start_agent(name, more, environment).expect("it starts");
    }

    /// The agent called `name`.
    pub fn agent(&mut self, name: &str) -> &mut Daemon {
        self.shared.agent(name).expect("this agent was started")
    }

    /// Waits until the agent called `name` writes a line with `text`.
    pub fn wait_for_line(&mut self, name: &str, text: &str) -> String {
        let interrupt = self.interrupt.clone();
        self.agent(name).wait_for_line(text, PATIENCE, &interrupt).expect("it writes it")
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
