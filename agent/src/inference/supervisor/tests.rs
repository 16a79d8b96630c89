//! The keeper with processes that are shell scripts, and little patience.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use hatchery_common::{
    checkpoint::ReplicaForm,
    digest::Digest,
    generate::{FinishReason, GenerationOrder, SamplingParams, StopStrings},
    id::{CheckpointId, RequestId},
};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::inference::{
    choice::Work,
    dispatch::{OnGpu, Part, Ticket},
};

/// How long anything in a test may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any test.
const LONG: Duration = Duration::from_mins(10);
const READY: &str = r#"echo '{"event":"ready","device":"cuda:0","sequences_max":2,
"pace":[{"sequences":1,"secs_per_step":1e-9}]}' | tr -d '\n'; echo"#;
const REQUEST: RequestId = RequestId::from_bytes([9; 16]);

/// The checkpoint folder and the process id of each process that was started.
type Started = Arc<Mutex<Vec<(PathBuf, u32)>>>;

struct Bench {
    queue: DispatchQueue,
    gpus: Gpus,
    started: Started,
    _keeper: AbortOnDropHandle<()>,
}

impl Bench {
    /// A keeper with a GPU, whose processes do what `script` says. The processor makes one answer at a time.
    fn new(script: &str, limits: Limits) -> Self {
        Self::with_pauses(script, limits, Duration::from_millis(1))
    }

    /// The same, with pauses of up to `pause`. None can be started for a folder called `broken`.
    fn with_pauses(script: &str, limits: Limits, pause: Duration) -> Self {
        let (queue, gpus, started) = (DispatchQueue::new(1), Gpus::default(), Started::default());
        gpus.offer([Device::cuda(0)].into());
        let (script, noted) = (script.to_owned(), Arc::clone(&started));
        let start = move |folder: &Path, _| {
            if folder == Path::new("broken") {
                lock(&noted).push((folder.to_owned(), 0));
                return Err(io::ErrorKind::NotFound.into());
            }
            let process = AnswererProcess::start_with(Path::new("/bin/sh"), ["-c", &script])?;
            lock(&noted).push((folder.to_owned(), process.id()));
            Ok(process)
        };
        let pauses = Pauses::new(Backoff::new(pause, pause));
        let supervisor =
            Supervisor { queue: queue.clone(), gpus: gpus.clone(), start: Box::new(start), limits, pauses };
        let supervisor = AbortOnDropHandle::new(tokio::spawn(supervisor.run()));
        Self { queue, gpus, started, _keeper: supervisor }
    }

    /// An answer at work on the processor, and one that waits.
    fn demand(&self, model: &str) -> [Ticket; 2] {
        let work = Work { prompt_bytes: 0, bytes: 100 };
        let [at_work, waiting] =
            [(); 2].map(|()| self.queue.enqueue(served(model), work, true, Instant::now().into()));
        at_work.begin();
        [at_work, waiting]
    }

    /// The answer to [`REQUEST`], when the GPU has it.
    async fn on_gpu(&self, model: &str, waiting: &Ticket) -> OnGpu {
        let order = GenerationOrder {
            checkpoint: served(model).key.0,
            prompt: vec![],
            max_bytes: 4,
            sampling: SamplingParams::greedy(),
            stop: StopStrings::default(),
        };
        let mut changes = self.queue.changes();
        let moving = async {
            loop {
                changes.mark_unchanged();
                if let Some(on_gpu) = waiting.move_to_gpu(REQUEST, &order) {
                    return on_gpu;
                }
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, moving).await.expect("a GPU comes to be ready")
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&[(PathBuf, u32)]) -> bool) {
        let waiting = async {
            while !holds(&lock(&self.started)) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn served(model: &str) -> Served {
    Served { key: (CheckpointId(Digest::of(model.as_bytes())), ReplicaForm::Whole), folder: model.into() }
}

fn runs(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}

fn limits() -> Limits {
    Limits { ready: LONG, silence: LONG, idle: LONG }
}

fn text(bytes: &str) -> String {
    format!(r#"read order; echo '{{"event":"text","request":"{REQUEST}","bytes":{bytes}}}'"#)
}

async fn next(on_gpu: &mut OnGpu) -> Option<Part> {
    timeout(PATIENCE, on_gpu.next()).await.expect("it goes on or ends")
}

#[tokio::test]
async fn one_that_is_never_ready_is_ended_and_tried_again() {
    let limits = Limits { ready: Duration::from_millis(20), ..limits() };
    let bench = Bench::new("sleep 600", limits);
    let _tickets = bench.demand("a");
    let again = |started: &[(PathBuf, u32)]| started.len() > 1 && !runs(started[0].1);
    bench.until("the first is gone, and there is another", again).await;
}

#[tokio::test]
async fn one_that_falls_silent_gives_its_answers_back() {
    let limits = Limits { silence: Duration::from_secs(4), ..limits() };
    let bench = Bench::new(&format!("{READY}; {}; sleep 600", text("[7]")), limits);
    let [_at_work, waiting] = bench.demand("a");
    let mut on_gpu = bench.on_gpu("a", &waiting).await;
    assert_eq!(next(&mut on_gpu).await, Some(Part::Text(vec![7])));
    assert_eq!(next(&mut on_gpu).await, None);
    bench.until("it is gone", |started| !runs(started[0].1)).await;
}

#[tokio::test]
async fn one_that_breaks_its_word_is_ended() {
    let early = format!(r#"echo '{{"event":"finished","request":"{REQUEST}","finish_reason":"max_bytes"}}'"#);
    let nonsense = READY.replace("1e-9", "-1");
    for script in [
        format!("{READY}; {}; sleep 600", text("[1,2,3,4,5]")),
        format!("{READY}; {}; {early}; sleep 600", text("[1,2,3]")),
        format!("{READY}; read order; {READY}; sleep 600"),
    ] {
        let bench = Bench::new(&script, limits());
        let [_at_work, waiting] = bench.demand("a");
        let mut on_gpu = bench.on_gpu("a", &waiting).await;
        while let Some(part) = next(&mut on_gpu).await {
            assert_eq!(part, Part::Text(vec![1, 2, 3]), "{script}");
        }
        bench.until("it is gone", |started| !runs(started[0].1)).await;
    }
    let bench = Bench::new(&format!("{nonsense}; sleep 600"), limits());
    let _tickets = bench.demand("a");
    bench.until("it is tried again", |started| started.len() > 1 && !runs(started[0].1)).await;
}

#[tokio::test]
async fn an_answer_goes_through_and_the_process_stays_until_nobody_asks() {
    let limits = Limits { idle: Duration::from_secs(4), ..limits() };
    let end = format!(r#"echo '{{"event":"finished","request":"{REQUEST}","finish_reason":"stop_string"}}'"#);
    let bench = Bench::new(&format!("{READY}; {}; {end}; sleep 600", text("[1,2]")), limits);
    let [at_work, waiting] = bench.demand("a");
    let mut on_gpu = bench.on_gpu("a", &waiting).await;
    drop(at_work);
    assert_eq!(next(&mut on_gpu).await, Some(Part::Text(vec![1, 2])));
    assert_eq!(next(&mut on_gpu).await, Some(Part::Finished(FinishReason::StopString)));
    bench.until("it is gone", |started| !runs(started[0].1)).await;
    timeout(PATIENCE, bench.gpus.vacated(Device::cuda(0))).await.unwrap();
    bench.until("the GPU is given back", |_| bench.gpus.take().is_some()).await;
    assert_eq!(lock(&bench.started).len(), 1);
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_on_a_gpu_keeps_no_other_from_it() {
    let bench = Bench::with_pauses(&format!("{READY}; sleep 600"), limits(), 1000 * LONG);
    let _more_wait_for_it = [bench.demand("broken"), bench.demand("broken")];
    let is_tried =
        |started: &[(PathBuf, u32)]| started.iter().any(|(folder, _)| folder == Path::new("broken"));
    bench.until("it was tried", is_tried).await;
    let _tickets = bench.demand("a");
    let has_other = |started: &[(PathBuf, u32)]| started.iter().any(|(folder, _)| folder == Path::new("a"));
    bench.until("the other has the GPU", has_other).await;
}

#[tokio::test]
async fn another_checkpoint_has_the_gpu_when_nobody_needs_it() {
    let bench = Bench::new(&format!("{READY}; {}; sleep 600", text("[1]")), limits());
    let [_at_work, waiting] = bench.demand("a");
    let mut on_gpu = bench.on_gpu("a", &waiting).await;
    let [_at_work, _waiting] = bench.demand("b");
    assert_eq!(next(&mut on_gpu).await, Some(Part::Text(vec![1])));
    assert_eq!(lock(&bench.started).len(), 1, "an answer is in the making there");
    drop(on_gpu);
    let folders = ["a", "b"].map(PathBuf::from);
    bench.until("the other is started", |started| started.iter().map(|one| &one.0).eq(&folders)).await;
    assert!(!runs(lock(&bench.started)[0].1), "one at a time");
}

#[tokio::test]
async fn the_gpu_is_given_up_at_once_to_training_and_its_answers_go_on() {
    let bench = Bench::new(&format!("{READY}; sleep 600"), limits());
    let [_at_work, waiting] = bench.demand("a");
    let mut on_gpu = bench.on_gpu("a", &waiting).await;
    bench.gpus.withdraw(Device::cuda(0));
    timeout(PATIENCE, bench.gpus.vacated(Device::cuda(0))).await.unwrap();
    assert!(!runs(lock(&bench.started)[0].1), "it is gone when the GPU is said to be");
    assert_eq!(next(&mut on_gpu).await, None);
}
