//! Answers on a GPU: a process that makes many of them, and what it leaves unfinished.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::{fs, os::unix::fs::symlink};

use hatchery_bdh::{Engine, Generation, Model, Window};
use hatchery_common::{
    device::Device,
    generate::{
        FinishReason, GenerationFinished, GenerationOrder, NEW_BYTES_MAX, RawSamplingParams, SamplingParams,
        StopStrings,
    },
    id::{CheckpointId, RequestId},
    session::{AnswerPart, AssignedAttempt, CoordinatorMessage, Report},
    trainer::Ending,
};
use support::{
    coordinator::{Coordinator, Notes},
    fake_trainer,
    inhabited::Owner,
    job,
    node::{Node, attempt, ending, ready, with_checkpoint_of},
    runs, until,
};

/// A node that holds a checkpoint, and its trainer in a folder with what that is to do.
struct Bench {
    coordinator: Coordinator,
    node: Node,
    checkpoint: CheckpointId,
    folder: tempfile::TempDir,
}

impl Bench {
    /// A node with these devices, on which a process answers by `script`.
    async fn new(devices: &str, script: &str) -> Self {
        // The longest answers take the processor longer than anything here.
        let (coordinator, checkpoint) = with_checkpoint_of(|dataset| job(dataset, 64, 16)).await;
        let folder = tempfile::tempdir().unwrap();
        let trainer = folder.path().join("trainer");
        symlink(fake_trainer(), &trainer).unwrap();
        fs::write(folder.path().join("devices"), devices).unwrap();
        fs::write(folder.path().join("answerer"), script).unwrap();
        let mut node = Node { trainer, ..Node::new() };
        node.start(&coordinator);
        coordinator.assign(|assignment| assignment.checkpoints = vec![checkpoint]);
        coordinator.until("it holds the checkpoint", |notes| ready(notes, checkpoint)).await;
        Self { coordinator, node, checkpoint, folder }
    }

    /// The same with an agent that was started anew, and another script.
    async fn start_again(&mut self, script: &str) {
        self.node.crash().await;
        fs::write(self.folder.path().join("answerer"), script).unwrap();
        fs::write(self.folder.path().join("done"), "").unwrap();
        self.coordinator.note(|notes| notes.report = Report::default());
        self.node.start(&self.coordinator);
        let checkpoint = self.checkpoint;
        self.coordinator.until("it holds the checkpoint again", |notes| ready(notes, checkpoint)).await;
    }

    /// One whose GPU is ready; what was asked for that is cancelled, and gone before what is asked next.
    async fn with_gpu(script: &str) -> Self {
        let bench = Self::new("cuda:0\ncpu", script).await;
        let mut asked = bench.fill_processor().await;
        asked.push(bench.ask(bench.order(20)).await);
        until("a process is started", || bench.process().is_some()).await;
        for request in asked {
            bench.cancel(request).await;
        }
        bench
    }

    /// The longest answers, as many as the processor makes at once, which are begun.
    async fn fill_processor(&self) -> Vec<RequestId> {
        self.fill_processor_with(NEW_BYTES_MAX).await
    }

    /// The same with shorter ones.
    async fn fill_processor_with(&self, max_bytes: u32) -> Vec<RequestId> {
        let asked = vec![self.ask(self.order(max_bytes)).await, self.ask(self.order(max_bytes)).await];
        let are_begun = |notes: &Notes| asked.iter().all(|request| notes.answers.contains_key(request));
        self.coordinator.until("the processor is at work", are_begun).await;
        asked
    }

    fn order(&self, max_bytes: u32) -> GenerationOrder {
        let sampling = RawSamplingParams { seed: 5, repetition_penalty: 1.1, ..RawSamplingParams::default() };
        GenerationOrder {
            checkpoint: self.checkpoint,
            prompt: b"To be".to_vec(),
            max_bytes,
            sampling: SamplingParams::new(sampling).unwrap(),
            stop: StopStrings::default(),
        }
    }

    async fn ask(&self, order: GenerationOrder) -> RequestId {
        let request = RequestId::random();
        self.coordinator.say(CoordinatorMessage::Generation { request, order }).await;
        request
    }

    async fn cancel(&self, request: RequestId) {
        self.coordinator.say(CoordinatorMessage::GenerationCancelled { request }).await;
    }

    /// What the process has done, and trainers.
    fn done(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("done")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn has_done(&self, what: &str, request: RequestId) -> bool {
        self.done().contains(&format!("{what} {request}"))
    }

    /// The process that was ready first.
    fn process(&self) -> Option<u32> {
        let done = self.done();
        done.iter().find_map(|line| line.strip_prefix("ready ")).map(|process| process.parse().unwrap())
    }

    /// The whole answer, when it is there.
    async fn answer(&self, request: RequestId) -> (Vec<u8>, GenerationFinished) {
        self.coordinator.until("the answer ends", |notes| is_whole(notes, request)).await;
        let notes = self.coordinator.notes();
        let parts = &notes.answers[&request];
        let Some((AnswerPart::Finished(figures), text)) = parts.split_last() else { panic!("{parts:?}") };
        let text = text.iter().map(|part| match part {
            AnswerPart::Text(bytes) => bytes.as_slice(),
            other => panic!("{other:?} before the end"),
        });
        (text.collect::<Vec<_>>().concat(), *figures)
    }

    /// What the engine answers that nobody interrupts.
    fn expected(&self, order: &GenerationOrder) -> Vec<u8> {
        let folder = self.node.state.path().join("checkpoints").join(self.checkpoint.to_string());
        let engine = Engine::new(Model::load(&folder).unwrap().into(), Window::Default).unwrap();
        Generation::new(engine, &order.prompt, &order.sampling, order.max_bytes as usize)
            .with_stops(order.stop.clone())
            .collect()
    }
}

fn is_whole(notes: &Notes, request: RequestId) -> bool {
    let parts = notes.answers.get(&request);
    parts.is_some_and(|parts| parts.iter().any(|part| !matches!(part, AnswerPart::Text(_))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_makes_whole_answers_and_its_process_goes_with_the_agent() {
    let mut bench = Bench::with_gpu("").await;
    let process = bench.process().unwrap();
    let whole = bench.expected(&bench.order(300));
    let stop = StopStrings::new(vec![whole[40..44].to_vec()]).unwrap();
    let orders = [
        bench.order(300),
        GenerationOrder { stop, ..bench.order(300) },
        GenerationOrder { prompt: vec![], sampling: SamplingParams::greedy(), ..bench.order(40) },
    ];
    for order in orders {
        let request = bench.ask(order.clone()).await;
        let (text, figures) = bench.answer(request).await;
        assert!(bench.has_done("answer", request), "the GPU is faster");
        assert_eq!(text, bench.expected(&order));
        assert!(!figures.loaded && figures.bytes as usize == text.len());
        assert_eq!(figures.device, Some(Device::cuda(0)));
        assert!(figures.first_byte_ms > 0.0 && figures.latency_ms >= figures.first_byte_ms);
        let is_stopped = text.len() < order.max_bytes as usize;
        assert_eq!(figures.finish_reason == FinishReason::StopString, is_stopped);
    }
    assert!(runs(process));
    bench.node.leave().await;
    until("it is gone with the agent", || !runs(process)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_made_in_both_places_until_training_needs_the_gpu() {
    let mut bench = Bench::with_gpu("sequences 4\nmake 10").await;
    let mut asked = Vec::new();
    for _ in 0..9 {
        asked.push(bench.ask(bench.order(200)).await);
    }
    let on_gpu = || asked.iter().copied().filter(|request| bench.has_done("answer", *request));
    until("the GPU is full", || on_gpu().count() == 4).await;
    for request in asked.iter().copied().filter(|request| !bench.has_done("answer", *request)) {
        assert_eq!(bench.answer(request).await.0, bench.expected(&bench.order(200)));
    }
    let on_gpu: Vec<RequestId> = on_gpu().collect();
    assert_eq!(on_gpu.len(), 4, "five were made on the processor");

    bench.cancel(on_gpu[0]).await;
    until("nobody listens there", || bench.has_done("cancel", on_gpu[0])).await;
    assert!(on_gpu.iter().all(|request| !is_whole(&bench.coordinator.notes(), *request)));

    let dataset = bench.coordinator.dataset("checkpoint 10");
    let training = AssignedAttempt { device: Device::cuda(0), ..attempt(dataset) };
    bench.coordinator.assign(|assignment| assignment.attempts = vec![training]);
    bench.coordinator.until("it trains", |notes| ending(notes) == Some(&Ending::Completed)).await;
    assert!(bench.done().contains(&"train alone".to_owned()), "{:?}", bench.done());
    for request in &on_gpu[1..] {
        let (text, figures) = bench.answer(*request).await;
        assert_eq!(text, bench.expected(&bench.order(200)), "it goes on where it stood");
        assert_eq!((figures.bytes, figures.finish_reason), (200, FinishReason::MaxBytes));
    }
    bench.node.leave().await;
    assert!(!is_whole(&bench.coordinator.notes(), on_gpu[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_processor_is_at_work_on_moves_to_a_gpu_that_is_much_sooner_at_the_end() {
    // Some seconds of the processor's.
    const BYTES: u32 = 9000;
    let mut bench = Bench::new("cuda:0\ncpu", "").await;
    let expected = bench.expected(&bench.order(BYTES));
    for (script, device) in [("", Some(Device::cuda(0))), ("make 50\nrefuse", None)] {
        bench.start_again(script).await;
        let at_work = bench.fill_processor_with(BYTES).await;
        let waiting = bench.ask(bench.order(20)).await;
        let has_all = || at_work.iter().all(|request| bench.has_done("answer", *request));
        until("the GPU has all", has_all).await;
        let first = bench.done().into_iter().find(|line| line.starts_with("answer "));
        assert_eq!(first, Some(format!("answer {waiting}")), "who waits goes first");
        for request in at_work {
            let (text, figures) = bench.answer(request).await;
            assert!(text == expected, "it goes on where it stood, and stands where it is given back");
            assert_eq!((figures.bytes, figures.device), (BYTES, device));
        }
    }
    bench.node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_goes_when_the_owner_comes() {
    let owner = Owner::default();
    let mut bench = Bench::new("cuda:0\ncpu", "make 10").await;
    bench.node.owner = Some(owner.clone());
    bench.start_again("make 10").await;
    let filling = bench.fill_processor().await;
    let request = bench.ask(bench.order(100)).await;
    until("the GPU has it", || bench.has_done("answer", request)).await;
    let process = bench.process().unwrap();
    owner.is_there(true);
    until("it is gone", || !runs(process)).await;
    for other in filling {
        bench.cancel(other).await;
    }
    assert_eq!(bench.answer(request).await.0, bench.expected(&bench.order(100)));
    bench.node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_leaves_unfinished_goes_on_on_the_processor() {
    // From the start, in the middle, before a stop string that is held back, and before the last byte.
    let cases = [
        ("make 0\ncrash", false),
        ("make 50\ncrash", false),
        ("make 50\ncrash", true),
        ("make 50\nrefuse", true),
        ("make 299\nrefuse", false),
    ];
    let mut bench = Bench::new("cuda:0\ncpu", "").await;
    for (script, is_stopped) in cases {
        bench.start_again(script).await;
        let whole = bench.expected(&bench.order(300));
        let stop = if is_stopped { vec![whole[48..54].to_vec()] } else { vec![] };
        let order = GenerationOrder { stop: StopStrings::new(stop).unwrap(), ..bench.order(300) };
        let filling = bench.fill_processor().await;
        let request = bench.ask(order.clone()).await;
        until("the GPU has it", || bench.has_done("answer", request)).await;
        for other in filling {
            bench.cancel(other).await;
        }
        let (text, figures) = bench.answer(request).await;
        assert_eq!(text, bench.expected(&order), "{script:?}");
        assert_eq!(figures.bytes as usize, text.len());
        assert_eq!(figures.finish_reason == FinishReason::StopString, is_stopped);
    }
    bench.node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_start_costs_no_answer() {
    let mut bench = Bench::new("cuda:0\ncpu", "fail there is no libtorch").await;
    let filling = bench.fill_processor().await;
    let request = bench.ask(bench.order(50)).await;
    until("it is tried", || !bench.done().is_empty()).await;
    for other in filling {
        bench.cancel(other).await;
    }
    assert_eq!(bench.answer(request).await.0, bench.expected(&bench.order(50)));
    bench.node.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_gpu_or_a_wish_for_it_the_processor_answers_alone() {
    let mut bench = Bench::new("cpu", "").await;
    for (devices, answer_on_gpu) in [("cpu", true), ("cuda:0\ncpu", false)] {
        fs::write(bench.folder.path().join("devices"), devices).unwrap();
        bench.node.answer_on_gpu = answer_on_gpu;
        bench.start_again("").await;
        let filling = bench.fill_processor().await;
        let request = bench.ask(bench.order(50)).await;
        for other in filling {
            bench.cancel(other).await;
        }
        assert_eq!(bench.answer(request).await.0, bench.expected(&bench.order(50)));
        assert_eq!(bench.done(), [] as [&str; 0]);
    }
    bench.node.leave().await;
}
