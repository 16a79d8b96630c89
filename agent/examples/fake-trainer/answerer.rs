//! The fake trainer as a process that answers: with the engine of the agent itself, on what it calls a card.
//!
//! What it does stands in the file `answerer` beside the program, line by line:
//!
//! | line | what it does |
//! |---|---|
//! | `fail TEXT` | writes a line to stderr and ends before it is ready |
//! | `sequences COUNT` | takes so many answers at once; else 4 |
//! | `pace SECS` | says that a step takes so long; else a nanosecond |
//! | `make BYTES` | makes so much of each answer and no more; else all of it |
//! | `crash` | ends where it makes no more of an answer |
//! | `refuse` | says there that the answer cannot be made |
//!
//! What it has done it adds to the file `done`: `ready PROCESS`, `fail`, `answer REQUEST`, `cancel REQUEST`.

use std::{
    collections::BTreeMap,
    fs,
    fs::OpenOptions,
    io::{Write, stdin},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use hatchery_bdh::{Engine, Generation, Model, Session, Window};
use hatchery_common::{
    answerer::{AnswererCommand, AnswererEvent, Pace},
    device::Device,
    generate::{FinishReason, GenerationOrder},
    id::RequestId,
};

use crate::answer as tell;

const SCRIPT_FILE: &str = "answerer";
const DEVICES_FILE: &str = "devices";
const DONE_FILE: &str = "done";
/// Bytes of one event.
const TEXT_BYTES: usize = 7;

/// The folder of the program as it was called: tests call it by a link in a folder of theirs.
fn beside() -> PathBuf {
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    program.parent().map(Path::to_owned).unwrap_or_default()
}

/// The devices that it is said to have: those in the file `devices`, else the processor.
pub(crate) fn devices() -> Vec<Device> {
    let text = fs::read_to_string(beside().join(DEVICES_FILE));
    text.map_or_else(
        |_| vec![Device::CPU],
        |text| text.lines().map(|line| line.parse().expect("a device")).collect(),
    )
}

/// Notes that a trainer begins, and whether a process that answers is still there: `train beside PROCESS`, or `train alone`.
pub(crate) fn note_trainer() {
    let Ok(done) = fs::read_to_string(beside().join(DONE_FILE)) else { return };
    let answers = |process: &&str| {
        let status = fs::read_to_string(format!("/proc/{process}/status"));
        status.is_ok_and(|status| !status.contains("State:\tZ"))
    };
    match done.lines().filter_map(|line| line.strip_prefix("ready ")).find(answers) {
        Some(process) => note(&format!("train beside {process}")),
        None => note("train alone"),
    }
}

fn note(line: &str) {
    let file = OpenOptions::new().append(true).create(true).open(beside().join(DONE_FILE));
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    written.expect("the folder can be written");
}

#[derive(Clone)]
struct Script {
    sequences_max: u32,
    secs_per_step: f64,
    bytes: usize,
    crashes: bool,
    refuses: bool,
}

/// Answers until the end of stdin.
pub(crate) fn run(checkpoint: &Path, device: Device) {
    let text = fs::read_to_string(beside().join(SCRIPT_FILE)).expect("the test has written it");
    let mut script =
        Script { sequences_max: 4, secs_per_step: 1e-9, bytes: usize::MAX, crashes: false, refuses: false };
    for line in text.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "fail" => {
                note("fail");
                eprintln!("{rest}");
                std::process::exit(1);
            }
            "sequences" => script.sequences_max = rest.parse().expect("a count"),
            "pace" => script.secs_per_step = rest.parse().expect("seconds"),
            "make" => script.bytes = rest.parse().expect("a count"),
            "crash" => script.crashes = true,
            "refuse" => script.refuses = true,
            _ => {}
        }
    }
    let model = Arc::new(Model::load(checkpoint).expect("the checkpoint is whole"));
    let pace = vec![Pace { sequences: 1, secs_per_step: script.secs_per_step }];
    note(&format!("ready {}", std::process::id()));
    tell(&AnswererEvent::Ready { device, sequences_max: script.sequences_max, pace });
    let mut heard: BTreeMap<RequestId, Arc<AtomicBool>> = BTreeMap::new();
    for line in stdin().lines() {
        let line = line.expect("stdin can be read");
        match serde_json::from_str(&line).expect("the agent's own") {
            AnswererCommand::Answer { request, order, told } => {
                note(&format!("answer {request}"));
                let (model, script, is_heard) =
                    (Arc::clone(&model), script.clone(), Arc::new(AtomicBool::new(true)));
                heard.insert(request, Arc::clone(&is_heard));
                thread::spawn(move || make(&model, request, &order, &told, &script, &is_heard));
            }
            AnswererCommand::Cancel { request } => {
                note(&format!("cancel {request}"));
                if let Some(is_heard) = heard.get(&request) {
                    is_heard.store(false, Ordering::Relaxed);
                }
            }
        }
    }
}

/// Makes an answer as long as somebody listens.
fn make(
    model: &Arc<Model>,
    request: RequestId,
    order: &GenerationOrder,
    told: &[u8],
    script: &Script,
    is_heard: &AtomicBool,
) {
    let engine = Engine::new(Arc::clone(model), Window::Default).expect("the default window");
    let mut session = Session::new(engine, &order.sampling);
    session.feed(&order.prompt);
    session.follow(told);
    let left_bytes = order.max_bytes as usize - told.len();
    let mut generation = Generation::resume(session, b"", left_bytes).with_stops(order.stop.clone());
    let mut left = script.bytes;
    loop {
        if !is_heard.load(Ordering::Relaxed) {
            return;
        }
        let bytes: Vec<u8> = generation.by_ref().take(TEXT_BYTES.min(left)).collect();
        if bytes.is_empty() {
            break;
        }
        left -= bytes.len();
        tell(&AnswererEvent::Text { request, bytes });
    }
    if left > 0 {
        let finish_reason =
            if generation.is_stopped() { FinishReason::StopString } else { FinishReason::MaxBytes };
        tell(&AnswererEvent::Finished { request, finish_reason });
    } else if script.crashes {
        eprintln!("CUDA error: unspecified launch failure");
        std::process::abort();
    } else if script.refuses {
        tell(&AnswererEvent::Failed { request, why: "it does not fit".to_owned() });
    }
}
