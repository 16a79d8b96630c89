//! What the tests of the real binary share: a small recipe, orders, and a running attempt.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
};

use hatchery_common::{
    device::Device,
    id::{AttemptId, Epoch, JobId},
    model::{ModelConfig, RawModelConfig},
    recipe::{RawTrainSpec, TrainSpec},
    trainer::{AttemptOrder, Ending, TrainerCommand, TrainerEvent},
};

/// 200,000 bytes of public-domain text.
pub(crate) fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/shakespeare.txt")
}

/// The binary, with the settings for which it would start anew: half of the time of a short run.
pub(crate) fn trainer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hatchery-trainer"));
    command.envs([("OMP_WAIT_POLICY", "PASSIVE"), ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")]);
    command.env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
    command
}

/// Runs the binary to its end.
pub(crate) fn output(arguments: &[&str]) -> Output {
    trainer().args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Runs the binary, which must succeed, and reads its stdout as JSON.
pub(crate) fn json(arguments: &[&str]) -> serde_json::Value {
    let output = output(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs the binary, which must fail with exit code 1 (a panic would give 101), and gives what it said.
pub(crate) fn refusal(arguments: &[&str]) -> String {
    let output = output(arguments);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
    message
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A model whose steps take milliseconds, dropout included.
pub(crate) fn small_model() -> ModelConfig {
    ModelConfig::new(RawModelConfig {
        n_layer: 2,
        n_embd: 16,
        dropout: 0.1,
        n_head: 2,
        mlp_internal_dim_multiplier: 8,
        vocab_size: 256,
    })
    .unwrap()
}

pub(crate) fn small_train() -> RawTrainSpec {
    RawTrainSpec {
        steps: 40,
        batch: 4,
        block: 16,
        checkpoint_every: 1_000_000,
        validate_every: 1_000_000,
        validation_windows: 8,
        ..Default::default()
    }
}

/// An order to train the small model on the corpus into `folder`, without a lease.
pub(crate) fn order(folder: &Path, train: RawTrainSpec) -> AttemptOrder {
    AttemptOrder {
        attempt: AttemptId { job: JobId::from_bytes([7; 16]), epoch: Epoch(1) },
        model: small_model(),
        train: TrainSpec::new(train).unwrap(),
        corpus: corpus(),
        device: Device::CPU,
        threads: 1,
        checkpoints: folder.join("checkpoints"),
        resume_from: None,
        fine_tune_from: None,
        lease_until: None,
    }
}

/// A trainer at work on an order, killed when dropped.
pub(crate) struct Attempt {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
    /// Kept until the end, which removes it.
    order: Option<tempfile::NamedTempFile>,
}

impl Attempt {
    pub(crate) fn start(order: &AttemptOrder) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&serde_json::to_vec(order).unwrap()).unwrap();
        let mut attempt = Self::start_file(file.path());
        attempt.order = Some(file);
        attempt
    }

    pub(crate) fn start_file(file: &Path) -> Self {
        let mut child = trainer()
            .args(["train", "--attempt", text(file)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin, stdout, order: None }
    }

    /// The next event; none after the last one.
    pub(crate) fn event(&mut self) -> Option<TrainerEvent> {
        let line = self.stdout.next()?.unwrap();
        Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}")))
    }

    /// Waits for an event that `pick` accepts; the run must not end before it.
    pub(crate) fn wait_for<T>(&mut self, pick: impl Fn(&TrainerEvent) -> Option<T>) -> T {
        loop {
            let event = self.event().expect("the run ended first");
            if let Some(found) = pick(&event) {
                return found;
            }
        }
    }

    pub(crate) fn wait_for_progress(&mut self) -> u64 {
        self.wait_for(|event| match event {
            TrainerEvent::Progress(progress) => Some(progress.step),
            _ => None,
        })
    }

    pub(crate) fn wait_for_checkpoint(&mut self) -> PathBuf {
        self.wait_for(|event| match event {
            TrainerEvent::Checkpoint { folder, .. } => Some(folder.clone()),
            _ => None,
        })
    }

    pub(crate) fn send(&mut self, command: &TrainerCommand) {
        let line = serde_json::to_string(command).unwrap();
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// What the end of the agent looks like.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// All events to the end, how it ended, and the exit code.
    pub(crate) fn finish(mut self) -> (Vec<TrainerEvent>, Ending, i32) {
        let mut events: Vec<_> = std::iter::from_fn(|| self.event()).collect();
        let code = self.child.wait().unwrap().code().expect("it exits by itself");
        match events.pop() {
            Some(TrainerEvent::Ended(ending)) => (events, ending, code),
            last => panic!("the last event is {last:?}"),
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // Only where a test failed half-way; else it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs an order to its end, which must be completion; gives the last checkpoint's folder.
pub(crate) fn complete(order: &AttemptOrder) -> PathBuf {
    let (events, ending, code) = Attempt::start(order).finish();
    assert_eq!((ending, code), (Ending::Completed, 0));
    let mut folders = events.into_iter().filter_map(|event| match event {
        TrainerEvent::Checkpoint { folder, .. } => Some(folder),
        _ => None,
    });
    folders.next_back().expect("the last step makes a checkpoint")
}

/// Copies a folder's files.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
