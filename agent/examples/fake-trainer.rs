//! A trainer that trains nothing: it speaks the contract of `hatchery_common::trainer` and does what its corpus says,
//! line by line. For the agent's tests; `cargo test` builds it, and nothing installs it.
//!
//! | line | what it does |
//! |---|---|
//! | `progress STEP` | reports progress |
//! | `checkpoint STEP` | writes a checkpoint folder with a small model, and reports it |
//! | `write TEXT` | writes a line to stderr |
//! | `flood BYTES` | writes so much to stderr |
//! | `garbage` | writes lines to stdout that are no events, one of them very long |
//! | `child` | starts a process that outlives it |
//! | `deaf` | from here on pays no heed to signals, commands and the end of stdin |
//! | `wait` | waits until it is told to stop or its lease ends, then writes a checkpoint |
//! | `wait-file PATH` | waits until a file is there |
//! | `crash` | aborts |
//!
//! At the end of the corpus it has completed.

use std::{
    collections::HashMap,
    fs,
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
    time::BootTime,
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

/// What it was told from outside.
#[derive(Clone, Copy)]
struct Told {
    stop: bool,
    lease_until: Option<BootTime>,
}

impl Told {
    fn ending(self) -> Option<Ending> {
        let expired = self.lease_until.is_some_and(|until| BootTime::now() >= until);
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
        ["train", "--attempt", order] => {
            train(Path::new(order)).await;
            // Not by returning: the runtime would wait for the end of stdin.
            std::process::exit(0);
        }
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

fn doctor() -> DoctorReport {
    let device = TrainerDevice { device: Device::CPU, name: String::new(), memory_bytes: 0, bf16: false };
    DoctorReport {
        trainer: "0.0.0".to_owned(),
        libtorch: "2.11.0".to_owned(),
        libtorch_folder: None,
        devices: vec![device],
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
    });
    let mut deaf = false;
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
                    checkpoint(&order, step);
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
            "wait" => loop {
                let ending = told.borrow().ending();
                if let Some(ending) = ending.filter(|_| !deaf) {
                    step += 1;
                    checkpoint(&order, step);
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
            _ => {}
        }
    }
    answer(&TrainerEvent::Ended(Ending::Completed));
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

fn checkpoint(order: &AttemptOrder, step: u64) {
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
    write(MODEL_FILE, &model(order, step));
    write(OPTIMIZER_FILE, format!("moments at {step}").as_bytes());
    write(TRAINING_FILE, &serde_json::to_vec(&cursor).expect("JSON"));
    fs::rename(&unfinished, &folder).expect("both are in one folder");
    answer(&TrainerEvent::Checkpoint { folder, step, metrics });
}

/// Weights that differ from step to step, in the shapes of the order's model.
fn model(order: &AttemptOrder, step: u64) -> Vec<u8> {
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
        let bytes: Vec<u8> = (0..count).flat_map(|index| weight(index).to_le_bytes()).collect();
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
