//! Who is next on the processor, and what a GPU is told.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use hatchery_common::{
    checkpoint::ReplicaForm,
    digest::Digest,
    generate::{SamplingParams, StopStrings},
    id::CheckpointId,
};

use super::*;

const WORK: Work = Work { prompt_bytes: 0, bytes: 100 };

fn served() -> Served {
    Served { key: (CheckpointId(Digest::of(b"a")), ReplicaForm::Whole), folder: "a".into() }
}

fn order() -> GenerationOrder {
    GenerationOrder {
        checkpoint: served().key.0,
        prompt: vec![],
        max_bytes: WORK.bytes as u32,
        sampling: SamplingParams::greedy(),
        stop: StopStrings::default(),
    }
}

fn request(number: u8) -> RequestId {
    RequestId::from_bytes([number; 16])
}

/// Opens a GPU that takes nothing for a byte; gives what it is told, of which so much waits for it to read.
fn open_gpu(queue: &DispatchQueue, commands_max: usize) -> mpsc::Receiver<AnswererCommand> {
    let (commands, told) = mpsc::channel(commands_max);
    let pace = vec![Pace { sequences: 1, secs_per_step: 1e-9 }];
    queue.open(served().key, Device::cuda(0), 64, pace, commands).unwrap();
    told
}

#[test]
fn whoever_has_waited_longest_is_next() {
    let queue = DispatchQueue::new(2);
    let start = Instant::now();
    let enqueue = |secs, may_move| queue.enqueue(served(), WORK, may_move, start + Duration::from_secs(secs));
    let [first, second, third, fourth] = [1, 2, 3, 3].map(|secs| enqueue(secs, true));
    let mut changes = queue.changes();
    assert!(!second.begin() && !changes.has_changed().unwrap(), "it is not its turn");
    assert!(first.begin() && changes.has_changed().unwrap(), "the next one is told");
    changes.mark_unchanged();
    assert!(second.begin() && !third.begin(), "two at once");
    let given_back = enqueue(0, false);
    drop(first);
    assert!(!third.begin() && given_back.begin(), "it was asked before them");
    assert!(!fourth.begin());
    drop((second, given_back));
    assert!(!fourth.begin() && third.begin() && fourth.begin());
}

#[test]
fn a_cancellation_always_has_room() {
    let queue = DispatchQueue::new(1);
    let at_work = queue.enqueue(served(), WORK, true, Instant::now());
    assert!(at_work.begin());
    let waiting = [(); 3].map(|()| queue.enqueue(served(), WORK, true, Instant::now()));
    // For two answers with their cancellations, and for one answer without.
    let mut told = open_gpu(&queue, 5);
    let move_to_gpu = |number: u8| waiting[usize::from(number)].move_to_gpu(request(number), &order());
    let [one, two] = [0, 1].map(|number| move_to_gpu(number).unwrap());
    assert!(move_to_gpu(2).is_none(), "its cancellation would have no room");
    drop((one, two));
    for number in [0, 1] {
        let AnswererCommand::Answer { request: asked, .. } = told.try_recv().unwrap() else { panic!() };
        assert_eq!(asked, request(number));
    }
    for number in [0, 1] {
        assert_eq!(told.try_recv().unwrap(), AnswererCommand::Cancel { request: request(number) });
    }
    assert!(told.try_recv().is_err(), "nothing was told of the third");
    let third = move_to_gpu(2).unwrap();
    queue.hear(AnswererEvent::Failed { request: request(2), why: "no room".into() }).unwrap();
    drop(third);
    assert!(matches!(told.try_recv().unwrap(), AnswererCommand::Answer { .. }));
    assert!(told.try_recv().is_err(), "what is over needs no cancellation");
}

#[test]
fn whoever_waits_is_told_when_a_gpu_has_read_its_prompts() {
    let queue = DispatchQueue::new(1);
    let prompt = Work { prompt_bytes: 64_000, ..WORK };
    let [at_work, reading] = [(); 2].map(|()| queue.enqueue(served(), prompt, true, Instant::now()));
    assert!(at_work.begin());
    let _told = open_gpu(&queue, 4);
    let order = GenerationOrder { prompt: vec![b'a'; prompt.prompt_bytes], ..order() };
    let _on_gpu = reading.move_to_gpu(request(0), &order).unwrap();
    let mut changes = queue.changes();
    let text = || AnswererEvent::Text { request: request(0), bytes: vec![b'a'] };
    queue.hear(text()).unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    queue.hear(text()).unwrap();
    assert!(!changes.has_changed().unwrap(), "only that it has read it is news to others");
}
