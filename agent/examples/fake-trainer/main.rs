//! A trainer that trains nothing: it speaks the contract of `hatchery_common::trainer` and does what its corpus says,
//! line by line. For tests of the agent and of the whole system; `cargo test` builds it, and nothing installs it.
//!
//! | line | what it does |
//! |---|---|
//! | `progress STEP` | reports progress |
//! | `checkpoint STEP` | writes a checkpoint folder with a small model, and reports it |
//! | `spoil` | from here on its weights are no numbers |
//! | `write TEXT` | writes a line to stderr |
//! | `flood BYTES` | writes so much to stderr |
//! | `garbage` | writes lines to stdout that are no events, one of them very long |
//! | `child` | starts a process that outlives it |
//! | `deaf` | from here on pays no heed to signals, commands and the end of stdin |
//! | `wait` | waits until it is told to stop or its lease ends, then writes a checkpoint |
//! | `wait-file PATH` | waits until a file is there |
//! | `train MS` | makes the recipe's steps, each of so many milliseconds, with a checkpoint where the recipe wants one |
//! | `crash-at STEP` | makes the next `train` abort before this step |
//! | `crash` | aborts |
//!
//! At the end of the corpus it has completed. How it answers stands in `answerer`.
//!
//! What `train` has learnt by a step is a chain of digests over the job and all steps up to it, so a step that is lost,
//! doubled or out of order shows in every checkpoint after it. Each step that begins is a line in the file that
//! `FAKE_TRAINER_HISTORY` names, with the time at which the lease was looked at.

mod answerer;

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{Write, stderr, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, OPTIMIZER_FILE, TRAINED_BLOCK_KEY, TRAINING_FILE, folder_name},
    cursor::{LossCurve, Patience, TrainingCursor},
    device::Device,
    recipe::Precision,
    time::{BootTime, Timestamp},
    trainer::{
        AttemptOrder, Calibration, DoctorReport, Ending, Metrics, Progress, TrainerCommand, TrainerDevice,
        TrainerEvent,
    },
};
use safetensors::{Dtype, tensor::TensorView};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Names the file that gets a line for each step of `train`.
const HISTORY_VARIABLE: &str = "FAKE_TRAINER_HISTORY";

/// What it was told from outside.
#[derive(Clone, Copy)]
struct Told {
    stop: bool,
    lease_until: Option<BootTime>,
}

impl Told {
    fn ending(self) -> Option<Ending> {
        self.ending_at(BootTime::now())
    }

    fn ending_at(self, now: BootTime) -> Option<Ending> {
        let expired = self.lease_until.is_some_and(|until| now >= until);
        if self.stop { Some(Ending::Stopped) } else { expired.then_some(Ending::LeaseExpired) }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["doctor", ..] => answer(&doctor()),
        ["calibrate", "--device", device, ..] => {
            let device = device.parse().expect("the agent names a device");
            answer(&Calibration { device, steps_per_sec: 12.5, flops_per_sec: 1e9, version: 1 });
        }
        ["answer", "--checkpoint", checkpoint, "--device", device] => {
            answerer::run(Path::new(checkpoint), device.parse().expect("the agent names a device"));
        }
        ["train", "--attempt", order] => {
            answerer::note_trainer();
            train(Path::new(order)).await;
            // Not by returning: the runtime would wait for the end of stdin.
            std::process::exit(0);
        }
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

fn doctor() -> DoctorReport {
    let device = |device: Device| TrainerDevice { device, name: String::new(), memory_bytes: 0, bf16: false };
    DoctorReport {
        trainer: env!("CARGO_PKG_VERSION").to_owned(),
        libtorch: "2.11.0".to_owned(),
        libtorch_folder: None,
        devices: answerer::devices().into_iter().map(device).collect(),
        unavailable: vec![],
    }
}

fn answer(value: &impl serde::Serialize) {
    say(&serde_json::to_vec(value).expect("plain values are always JSON"));
}

fn say(line: &[u8]) {
    let mut stdout = stdout().lock();
    // Without a listener there is nothing to do any more.
    let said = stdout.write_all(line).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush());
    drop(said);
}

async fn train(path: &Path) {
    let order: AttemptOrder =
        serde_json::from_slice(&fs::read(path).expect("the order is there")).expect("JSON");
    let script = fs::read_to_string(&order.corpus).expect("the corpus is there");
    let (sender, told) = watch::channel(Told { stop: false, lease_until: order.lease_until });
    // Before it says that it has started, so that a signal never finds it unprepared.
    let terminate = signal(SignalKind::terminate()).expect("a signal can be listened to");
    tokio::spawn(listen(terminate, sender));
    let mut step = order.resume_from.as_deref().map_or(0, step_of);
    answer(&TrainerEvent::Started {
        step,
        device: order.device,
        precision: Precision::F32,
        libtorch: "2.11.0".to_owned(),
        slower_because: None,
    });
    let mut deaf = false;
    let mut scale = 1.0;
    let mut crash_at = None;
    for line in script.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "progress" => {
                step = rest.parse().expect("a step");
                answer(&TrainerEvent::Progress(Progress { step, train_loss: 2.0, ..Progress::default() }));
            }
            "checkpoint" => {
                // Going on from a later step, it has been here already.
                let wanted = rest.parse().expect("a step");
                if wanted > step {
                    step = wanted;
                    checkpoint(&order, step, format!("moments at {step}").as_bytes(), scale);
                }
            }
            "write" => eprintln!("{rest}"),
            "flood" => flood(rest.parse().expect("a count")),
            "garbage" => {
                say(b"[W] some library's warning");
                say(&vec![b'x'; 1 << 20]);
                say(b"{\"event\":\"unheard_of\"}");
            }
            "child" => {
                let mut child =
                    std::process::Command::new("sleep").arg("600").spawn().expect("sleep is everywhere");
                eprintln!("child {}", child.id());
                std::thread::spawn(move || child.wait());
            }
            "deaf" => deaf = true,
            "spoil" => scale = f32::NAN,
            "wait" => loop {
                let ending = told.borrow().ending();
                if let Some(ending) = ending.filter(|_| !deaf) {
                    step += 1;
                    checkpoint(&order, step, format!("moments at {step}").as_bytes(), scale);
                    return answer(&TrainerEvent::Ended(ending));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            },
            "wait-file" => {
                while !Path::new(rest).exists() {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
            "crash" => std::process::abort(),
            "crash-at" => crash_at = Some(rest.parse().expect("a step")),
            "train" => {
                let step_time = Duration::from_millis(rest.parse().expect("milliseconds"));
                if let Some(ending) = Run::begin(&order, crash_at).train(step_time, &told).await {
                    return answer(&TrainerEvent::Ended(ending));
                }
            }
            _ => {}
        }
    }
    answer(&TrainerEvent::Ended(Ending::Completed));
}

/// A run of `train`.
struct Run<'a> {
    order: &'a AttemptOrder,
    crash_at: Option<u64>,
    history: Option<File>,
    /// The step and the epoch that it goes on from.
    resumed: (u64, u64),
    step: u64,
    chain: blake3::Hash,
    /// The newest step that stands in a checkpoint.
    kept: u64,
}

impl<'a> Run<'a> {
    fn begin(order: &'a AttemptOrder, crash_at: Option<u64>) -> Self {
        let history = std::env::var_os(HISTORY_VARIABLE).map(|path| {
            OpenOptions::new().append(true).create(true).open(path).expect("the history can be written")
        });
        let (resumed, chain) = match &order.resume_from {
            None => ((0, 0), blake3::hash(order.job.to_string().as_bytes())),
            Some(folder) => {
                let text = fs::read(folder.join(OPTIMIZER_FILE)).expect("the checkpoint is whole");
                let moments: serde_json::Value =
                    serde_json::from_slice(&text).expect("a checkpoint of `train`");
                let number = |key: &str| moments[key].as_u64().expect("a number");
                let chain = moments["chain"].as_str().expect("a digest").parse().expect("a digest");
                ((number("step"), number("epoch")), chain)
            }
        };
        Self { order, crash_at, history, resumed, step: resumed.0, chain, kept: resumed.0 }
    }

    /// Trains to the last step; an ending if it has to stop before.
    async fn train(mut self, step_time: Duration, told: &watch::Receiver<Told>) -> Option<Ending> {
        let train = self.order.train.raw().clone();
        while self.step < train.steps {
            // Both before the look at the lease: nothing begins later than they say.
            let (wall, boot) = (Timestamp::now(), BootTime::now());
            let ending = told.borrow().ending_at(boot);
            if ending.is_some() {
                if self.step > self.kept {
                    self.keep();
                }
                return ending;
            }
            if self.crash_at.is_some_and(|step| self.step + 1 >= step) {
                std::process::abort();
            }
            self.note(wall, boot);
            tokio::time::sleep(step_time).await;
            self.step += 1;
            self.chain = blake3::hash(&[self.chain.as_bytes(), &self.step.to_le_bytes()[..]].concat());
            let progress = Progress { step: self.step, train_loss: 2.0, ..Progress::default() };
            answer(&TrainerEvent::Progress(progress));
            if self.step.is_multiple_of(train.checkpoint_every) || self.step == train.steps {
                self.keep();
            }
        }
        None
    }

    fn note(&mut self, wall: Timestamp, boot: BootTime) {
        let Some(history) = &mut self.history else { return };
        let line = serde_json::json!({
            "job": self.order.job, "epoch": self.order.epoch, "process": std::process::id(), "step": self.step + 1,
            "wall_ms": wall.0, "boot_ms": boot.0,
        });
        // One write for each line, so that those of several trainers do not mix.
        history.write_all(format!("{line}\n").as_bytes()).expect("the history can be written");
    }

    fn keep(&mut self) {
        let moments = serde_json::json!({
            "job": self.order.job, "epoch": self.order.epoch, "step": self.step, "chain": self.chain.to_string(),
            "resumed_step": self.resumed.0, "resumed_epoch": self.resumed.1,
        });
        checkpoint(self.order, self.step, moments.to_string().as_bytes(), 1.0);
        self.kept = self.step;
    }
}

/// Hears signals, commands, and the end of stdin.
async fn listen(mut terminate: Signal, told: watch::Sender<Told>) {
    let mut lines = BufReader::new(stdin()).lines();
    let mut ended = false;
    loop {
        let command = tokio::select! {
            line = lines.next_line(), if !ended => {
                let line = line.unwrap_or_default();
                ended = line.is_none();
                line.map_or(TrainerCommand::Stop, |line| serde_json::from_str(&line).expect("the agent's own"))
            }
            _ = terminate.recv() => TrainerCommand::Stop,
        };
        told.send_modify(|told| match command {
            TrainerCommand::Stop => told.stop = true,
            TrainerCommand::Lease { until } => told.lease_until = Some(until),
        });
    }
}

fn flood(bytes: usize) {
    let line = [b'.'; 1023];
    let mut stderr = stderr().lock();
    for _ in 0..bytes / 1024 {
        let written = stderr.write_all(&line).and_then(|()| stderr.write_all(b"\n"));
        written.expect("the agent reads stderr");
    }
}

fn step_of(folder: &Path) -> u64 {
    let text = fs::read(folder.join(TRAINING_FILE)).expect("the checkpoint is whole");
    serde_json::from_slice::<TrainingCursor>(&text).expect("a cursor").step
}

/// `scale` is a factor of every weight.
fn checkpoint(order: &AttemptOrder, step: u64, moments: &[u8], scale: f32) {
    let folder: PathBuf = order.checkpoints.join(folder_name(step));
    let unfinished = order.checkpoints.join(format!(".{}", folder_name(step)));
    fs::create_dir_all(&unfinished).expect("the agent made the folder above");
    let metrics = Metrics { first_loss: Some(5.5), train_loss: Some(2.0), ..Metrics::default() };
    let cursor = TrainingCursor {
        version: 1,
        step,
        train: order.train.clone(),
        corpus_bytes: 1,
        metrics,
        curve: LossCurve::default(),
        patience: Patience::default(),
        parent: None,
    };
    let write =
        |name: &str, bytes: &[u8]| fs::write(unfinished.join(name), bytes).expect("the disk has room");
    write(CONFIG_FILE, &serde_json::to_vec(&order.model).expect("JSON"));
    write(MODEL_FILE, &model(order, step, scale));
    write(OPTIMIZER_FILE, moments);
    write(TRAINING_FILE, &serde_json::to_vec(&cursor).expect("JSON"));
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("an earlier trainer of this attempt made it");
    }
    fs::rename(&unfinished, &folder).expect("both are in one folder");
    answer(&TrainerEvent::Checkpoint { folder, step, metrics });
}

/// Weights that differ from step to step, in the shapes of the order's model.
fn model(order: &AttemptOrder, step: u64, scale: f32) -> Vec<u8> {
    let raw = order.model.raw();
    let (embd, head, vocab) = (raw.n_embd as usize, raw.n_head as usize, raw.vocab_size as usize);
    let neurons = embd * raw.mlp_internal_dim_multiplier as usize / head;
    let shapes = [
        ("embed.weight", vec![vocab, embd]),
        ("encoder", vec![head, embd, neurons]),
        ("encoder_v", vec![head, embd, neurons]),
        ("decoder", vec![head * neurons, embd]),
        ("lm_head", vec![embd, vocab]),
    ];
    let tensors = shapes.map(|(name, shape)| {
        let count: usize = shape.iter().product();
        let weight = |index: usize| ((index as u64 * 7 + step * 13) % 19) as f32 * 0.01 - 0.09;
        let bytes: Vec<u8> = (0..count).flat_map(|index| (weight(index) * scale).to_le_bytes()).collect();
        (name, shape, bytes)
    });
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the length fits the shape"))
    });
    let block = order.train.raw().block.to_string();
    let metadata =
        HashMap::from([(TRAINED_BLOCK_KEY.to_owned(), block), ("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).expect("plain tensors can be written")
}
