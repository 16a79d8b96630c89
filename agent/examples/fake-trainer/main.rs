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
//! What `train` does by a step and what it writes stands in `hatchery_fake_trainer`. Each step that begins is a line in the file that
//! `FAKE_TRAINER_HISTORY` names, with the time at which the lease was looked at.

mod answerer;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write, stderr, stdout},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use hatchery_common::{
    device::Device,
    id::AttemptId,
    time::{BootTime, Timestamp},
    trainer::{
        AttemptOrder, Calibration, DoctorReport, Ending, Progress, TrainerCommand, TrainerDevice,
        TrainerEvent,
    },
};
use hatchery_fake_trainer::{Orders, Run, started, step_of, write};
use tokio::{
    io::{AsyncBufReadExt, BufReader, stdin},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Names the file that gets a line for each step of `train`.
const HISTORY_VARIABLE: &str = "FAKE_TRAINER_HISTORY";

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
    let (sender, told) = watch::channel(Orders::of(&order));
    // Before it says that it has started, so that a signal never finds it unprepared.
    let terminate = signal(SignalKind::terminate()).expect("a signal can be listened to");
    tokio::spawn(listen(terminate, sender));
    let mut step =
        order.resume_from.as_deref().map_or(Ok(0), step_of).expect("the checkpoint to go on from is whole");
    answer(&started(&order, step));
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
                    checkpoint(&order, step, scale);
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
                let ending = told.borrow().ending(BootTime::now());
                if let Some(ending) = ending.filter(|_| !deaf) {
                    step += 1;
                    checkpoint(&order, step, scale);
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
                let run = Run::begin(order.clone()).expect("it goes on from a checkpoint of `train`");
                if let Some(ending) = run_steps(run, step_time, crash_at, &told).await {
                    return answer(&TrainerEvent::Ended(ending));
                }
            }
            _ => {}
        }
    }
    answer(&TrainerEvent::Ended(Ending::Completed));
}

/// Trains to the last step; an ending if it has to stop before.
async fn run_steps(
    mut run: Run,
    step_time: Duration,
    crash_at: Option<u64>,
    told: &watch::Receiver<Orders>,
) -> Option<Ending> {
    let mut history = std::env::var_os(HISTORY_VARIABLE).map(|path| {
        OpenOptions::new().append(true).create(true).open(path).expect("the history can be written")
    });
    let keep = |run: &mut Run| run.keep().expect("the disk has room").iter().for_each(answer);
    while !run.is_complete() {
        // Both before the look at the lease: nothing begins later than they say.
        let (wall, boot) = (Timestamp::now(), BootTime::now());
        let ending = told.borrow().ending(boot);
        if ending.is_some() {
            keep(&mut run);
            return ending;
        }
        if crash_at.is_some_and(|step| run.step() + 1 >= step) {
            std::process::abort();
        }
        if let Some(history) = &mut history {
            note(history, &run, wall, boot).expect("the history can be written");
        }
        tokio::time::sleep(step_time).await;
        answer(&run.make_step());
        if run.wants_checkpoint() {
            keep(&mut run);
        }
    }
    None
}

fn note(history: &mut File, run: &Run, wall: Timestamp, boot: BootTime) -> io::Result<()> {
    let AttemptId { job, epoch } = run.order().attempt;
    let line = serde_json::json!({
        "job": job, "epoch": epoch, "process": std::process::id(), "step": run.step() + 1, "wall_ms": wall.0,
        "boot_ms": boot.0,
    });
    // One write for each line, so that those of several trainers do not mix.
    history.write_all(format!("{line}\n").as_bytes())
}

/// Hears signals, commands, and the end of stdin.
async fn listen(mut terminate: Signal, told: watch::Sender<Orders>) {
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
        told.send_modify(|told| told.obey(command));
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

/// Writes a checkpoint, and tells of it.
fn checkpoint(order: &AttemptOrder, step: u64, scale: f32) {
    let moments = format!("moments at {step}");
    answer(&write(order, step, moments.as_bytes(), scale).expect("the disk has room"));
}
