//! Answers: a few at a time on threads of their own, many on a GPU, streamed as they are made.
//!
//! A process beside the agent makes many answers at once on a GPU, for as long as that is worth it.
//!
//! ```text
//! inference -- enqueue, move_to_gpu, move_at_work --> dispatch <-- open, hear, close -- supervisor -- lines --> hatchery-trainer answer
//!                                                                                         |
//!                                      agent's loop, attempts -- offer, withdraw --> machine::gpu_guard
//! ```
//!
//! Nothing waits for the GPU alone. An answer that waits for the processor goes to the GPU as soon as it would end sooner
//! there, and one that the processor is at work on if that gains much. An answer that the GPU leaves unfinished goes on on
//! the processor from where it stood.
//!
//! | file | its reason to change |
//! |---|---|
//! | `choice` | where an answer is made, and when a process is started; pure |
//! | `dispatch` | the queue, the speed of both, and what is where |
//! | `supervisor` | the life of the process |

pub(crate) mod choice;
pub(crate) mod dispatch;
pub(crate) mod supervisor;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hatchery_bdh::{Engine, Generation, Session, Window};
use hatchery_common::{
    device::Device,
    generate::{FinishReason, GenerationFinished, GenerationOrder},
    id::RequestId,
    session::{AgentMessage, AnswerPart},
};
use tokio::{sync::mpsc, time::sleep_until};
use tokio_util::sync::CancellationToken;

use self::{
    choice::Work,
    dispatch::{DispatchQueue, OnGpu, Part, Served, Ticket},
};
use crate::{
    replicas::{models::Models, store::CheckpointStore},
    trainer::answerer::REQUESTS_MAX,
};

/// New bytes are sent when there are so many,
const CHUNK_BYTES: usize = 16;
/// or when so much time has passed.
const CHUNK_EVERY: Duration = Duration::from_millis(20);
/// Bytes of a prompt that are fed between two looks at whether anybody still listens.
const PREFILL_BYTES: usize = 64;

/// Makes answers; clones share the queue.
#[derive(Clone)]
pub(crate) struct Inference {
    store: CheckpointStore,
    models: Arc<Models>,
    queue: DispatchQueue,
    requests: Arc<Mutex<BTreeMap<RequestId, CancellationToken>>>,
}

/// Why an answer broke off.
enum Broken {
    /// Nobody listens any more.
    Cancelled,
    Failed(String),
}

/// Where an answer is made.
enum Place {
    Gpu(OnGpu),
    Processor(Ticket, Served),
}

/// What became of an answer on the processor.
enum Made {
    Whole(GenerationFinished),
    /// It goes on on the GPU.
    Moved(Box<Answer>, OnGpu),
}

/// An answer's way on the processor.
struct Way<'a> {
    ticket: &'a Ticket,
    listener: &'a Listener,
    begun: Instant,
    work: Work,
    left: Work,
    /// Time in which the processor waited for the listener.
    telling: Duration,
}

/// Where an answer's parts go.
#[derive(Clone)]
struct Listener {
    request: RequestId,
    outbox: mpsc::Sender<AgentMessage>,
    cancelled: CancellationToken,
}

impl Inference {
    /// One whose answers meet what makes them at `queue`.
    pub(crate) fn new(store: CheckpointStore, models: Arc<Models>, queue: DispatchQueue) -> Self {
        Self { store, models, queue, requests: Arc::default() }
    }

    /// Begins an answer; its parts go to `outbox`, the last one is `Finished` or `Failed`.
    pub(crate) fn answer(
        &self,
        request: RequestId,
        order: GenerationOrder,
        outbox: mpsc::Sender<AgentMessage>,
    ) {
        let received = Instant::now();
        let cancelled = CancellationToken::new();
        let listener = Listener { request, outbox, cancelled: cancelled.clone() };
        let busy = {
            let mut requests = self.requests();
            let busy = requests.len() >= REQUESTS_MAX;
            if !busy {
                requests.insert(request, cancelled);
            }
            busy
        };
        let inference = self.clone();
        tokio::spawn(async move {
            let last = if busy {
                let why = format!(
                    "this node is busy with {REQUESTS_MAX} waiting requests; try again, or another node"
                );
                Err(Broken::Failed(why))
            } else {
                let made = inference.make(order, received, &listener).await;
                inference.requests().remove(&request);
                made
            };
            let part = match last {
                Ok(finished) => AnswerPart::Finished(finished),
                Err(Broken::Failed(why)) => AnswerPart::Failed(why),
                Err(Broken::Cancelled) => return,
            };
            // Without a session there is nobody to tell.
            let _closed = listener.outbox.send(AgentMessage::Generation { request, part }).await;
        });
    }

    /// Stops making bytes for a request.
    pub(crate) fn cancel(&self, request: RequestId) {
        if let Some(cancelled) = self.requests().get(&request) {
            cancelled.cancel();
        }
    }

    /// Stops making bytes for all: the session in which they were asked is gone.
    pub(crate) fn cancel_all(&self) {
        self.requests().values().for_each(CancellationToken::cancel);
    }

    /// Makes an answer where it is at its end sooner, and on the processor what the GPU leaves unfinished.
    async fn make(
        &self,
        order: GenerationOrder,
        received: Instant,
        listener: &Listener,
    ) -> Result<GenerationFinished, Broken> {
        order.check().map_err(|error| Broken::Failed(error.to_string()))?;
        let mut answer = Answer { order, received, told: Vec::new(), first_byte_ms: 0.0, loaded: false };
        let mut may_be_on_gpu = true;
        let mut moved = None;
        loop {
            let place = match moved.take() {
                Some(gpu) => Place::Gpu(gpu),
                None => self.place(&answer, may_be_on_gpu, listener).await?,
            };
            match place {
                Place::Gpu(gpu) => {
                    let device = gpu.device;
                    if let Some(finish_reason) = answer.pass_on(gpu, listener).await? {
                        return Ok(answer.finished(finish_reason, Some(device)));
                    }
                    // Once is enough: what a GPU cannot make must not go round in circles.
                    may_be_on_gpu = false;
                }
                Place::Processor(ticket, served) => {
                    let (inference, listener) = (self.clone(), listener.clone());
                    let making = tokio::task::spawn_blocking(move || {
                        // The ticket goes along: the processor is at work until the thread is done, or it moves.
                        inference.make_here(answer, &served, &ticket, &listener)
                    });
                    let failed = |error| Err(Broken::Failed(format!("internal error of the agent: {error}")));
                    match making.await.unwrap_or_else(failed)? {
                        Made::Whole(finished) => return Ok(finished),
                        Made::Moved(rest, gpu) => (answer, moved) = (*rest, Some(gpu)),
                    }
                }
            }
        }
    }

    /// Waits for the processor, or for the GPU to be the better place.
    async fn place(
        &self,
        answer: &Answer,
        may_be_on_gpu: bool,
        listener: &Listener,
    ) -> Result<Place, Broken> {
        let checkpoint = answer.order.checkpoint;
        let (folder, form) = self.store.folder(checkpoint).ok_or_else(|| {
            let checkpoint = checkpoint.short();
            Broken::Failed(format!("this node does not hold the checkpoint {checkpoint} yet"))
        })?;
        let served = Served { key: (checkpoint, form), folder };
        let mut changes = self.queue.changes();
        let work = Work::whole(&answer.order, &answer.told);
        let ticket = self.queue.enqueue(served.clone(), work, may_be_on_gpu, answer.received);
        loop {
            changes.mark_unchanged();
            // What nobody waits for must not begin.
            if listener.cancelled.is_cancelled() {
                return Err(Broken::Cancelled);
            }
            if let Some(gpu) = ticket.move_to_gpu(listener.request, &answer.order) {
                return Ok(Place::Gpu(gpu));
            }
            if ticket.begin() {
                return Ok(Place::Processor(ticket, served));
            }
            tokio::select! {
                () = listener.cancelled.cancelled() => return Err(Broken::Cancelled),
                // Its sender lives in `self`.
                _ = changes.changed() => {}
            }
        }
    }

    /// Makes the rest of an answer on the processor, as long as the GPU is not much sooner at its end. Blocks.
    fn make_here(
        &self,
        mut answer: Answer,
        served: &Served,
        ticket: &Ticket,
        listener: &Listener,
    ) -> Result<Made, Broken> {
        let failed = |error: &dyn std::fmt::Display| Broken::Failed(error.to_string());
        let (model, loaded) = self.models.get(served.key, &served.folder).map_err(|error| failed(&error))?;
        answer.loaded |= loaded;
        let engine = Engine::new(model, Window::Default).map_err(|error| failed(&error))?;
        let work = Work::whole(&answer.order, &answer.told);
        let telling = Duration::ZERO;
        let mut way = Way { ticket, listener, begun: Instant::now(), work, left: work, telling };
        let made = answer.make_rest(engine, &mut way);
        self.queue.measured(served.key, way.done(), way.took());
        Ok(match made? {
            Rest::Made(finish_reason) => Made::Whole(answer.finished(finish_reason, None)),
            Rest::Moved(gpu) => Made::Moved(Box::new(answer), gpu),
        })
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<RequestId, CancellationToken>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer on its way.
struct Answer {
    order: GenerationOrder,
    received: Instant,
    /// What its listener has of it, or is about to have.
    told: Vec<u8>,
    first_byte_ms: f64,
    /// Whether the model was brought into memory for it.
    loaded: bool,
}

/// What became of the rest of an answer.
enum Rest {
    Made(FinishReason),
    Moved(OnGpu),
}

impl Way<'_> {
    /// So much of the work is done.
    fn done(&self) -> Work {
        self.work.less(self.left)
    }

    /// How long that took. What a slow listener takes is no matter of the processor's.
    fn took(&self) -> Duration {
        self.begun.elapsed().saturating_sub(self.telling)
    }

    /// A part was read.
    fn read(&mut self, part: &[u8], answer: &Answer) -> Result<Option<OnGpu>, Broken> {
        self.left.prompt_bytes -= part.len();
        self.listener.still_there()?;
        Ok(self.move_to_gpu(answer))
    }

    /// Tells the queue what is left, and leaves for the GPU if that is worth it.
    fn move_to_gpu(&self, answer: &Answer) -> Option<OnGpu> {
        self.ticket.left(self.left);
        let Answer { order, told, .. } = answer;
        self.ticket.move_at_work(self.listener.request, order, told, self.done(), self.took())
    }
}

impl Answer {
    /// Passes on what the GPU makes. None: it does not make it to the end.
    async fn pass_on(&mut self, mut gpu: OnGpu, listener: &Listener) -> Result<Option<FinishReason>, Broken> {
        let (mut chunk, mut due) = (Vec::new(), tokio::time::Instant::now());
        loop {
            tokio::select! {
                biased;
                () = listener.cancelled.cancelled() => return Err(Broken::Cancelled),
                part = gpu.next() => {
                    let end = match part {
                        Some(Part::Text(bytes)) => {
                            chunk.extend(bytes);
                            continue;
                        }
                        Some(Part::Finished(finish_reason)) => Some(finish_reason),
                        None => None,
                    };
                    if !chunk.is_empty() {
                        listener.tell(self.note(chunk)).await?;
                    }
                    return Ok(end);
                }
                // Many answers a GPU makes in many small parts: the session has other things to say too.
                // Nor does one wait for its turn among dozens while there is little room: reports keep leases.
                () = sleep_until(due), if !chunk.is_empty() => {
                    if listener.has_much_room() {
                        listener.tell(self.note(std::mem::take(&mut chunk))).await?;
                    }
                    due = tokio::time::Instant::now() + CHUNK_EVERY;
                }
            }
        }
    }

    /// Makes what is left, after what was told of it. Blocks.
    fn make_rest(&mut self, engine: Engine, way: &mut Way<'_>) -> Result<Rest, Broken> {
        let listener = way.listener;
        let mut session = Session::new(engine, &self.order.sampling);
        for part in self.order.prompt.chunks(PREFILL_BYTES) {
            session.feed(part);
            if let Some(gpu) = way.read(part, self)? {
                return Ok(Rest::Moved(gpu));
            }
        }
        // No prompt at all is to be fed too: it stands for the start of a line.
        session.feed(b"");
        for part in self.told.chunks(PREFILL_BYTES) {
            session.follow(part);
            if let Some(gpu) = way.read(part, self)? {
                return Ok(Rest::Moved(gpu));
            }
        }
        let mut generation =
            Generation::resume(session, b"", way.left.bytes).with_stops(self.order.stop.clone());

        let (mut chunk, mut sent) = (Vec::new(), self.received);
        for byte in generation.by_ref() {
            chunk.push(byte);
            way.left.bytes -= 1;
            if self.told.is_empty() || chunk.len() >= CHUNK_BYTES || sent.elapsed() >= CHUNK_EVERY {
                let begun = Instant::now();
                listener.send(self.note(std::mem::take(&mut chunk)))?;
                sent = Instant::now();
                way.telling += sent - begun;
                if let Some(gpu) = way.move_to_gpu(self) {
                    return Ok(Rest::Moved(gpu));
                }
            }
        }
        if generation.is_broken() {
            let why = "the model's output is not a number; its training has diverged";
            return Err(Broken::Failed(why.to_owned()));
        }
        if !chunk.is_empty() {
            listener.send(self.note(chunk))?;
        }
        let is_stopped = generation.is_stopped();
        Ok(Rest::Made(if is_stopped { FinishReason::StopString } else { FinishReason::MaxBytes }))
    }

    /// Keeps in mind what is told.
    fn note(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        if self.told.is_empty() {
            self.first_byte_ms = millis_since(self.received);
        }
        self.told.extend(&bytes);
        bytes
    }

    fn finished(&self, finish_reason: FinishReason, device: Option<Device>) -> GenerationFinished {
        GenerationFinished {
            latency_ms: millis_since(self.received),
            first_byte_ms: self.first_byte_ms,
            bytes: self.told.len() as u32,
            loaded: self.loaded,
            finish_reason,
            device,
        }
    }
}

impl Listener {
    /// Whether half of the outbox is free.
    fn has_much_room(&self) -> bool {
        self.outbox.capacity() >= self.outbox.max_capacity() / 2
    }

    fn still_there(&self) -> Result<(), Broken> {
        let gone = self.cancelled.is_cancelled() || self.outbox.is_closed();
        if gone { Err(Broken::Cancelled) } else { Ok(()) }
    }

    fn send(&self, bytes: Vec<u8>) -> Result<(), Broken> {
        self.still_there()?;
        self.outbox.blocking_send(self.text(bytes)).map_err(|_| Broken::Cancelled)
    }

    async fn tell(&self, bytes: Vec<u8>) -> Result<(), Broken> {
        tokio::select! {
            sent = self.outbox.send(self.text(bytes)) => sent.map_err(|_| Broken::Cancelled),
            () = self.cancelled.cancelled() => Err(Broken::Cancelled),
        }
    }

    fn text(&self, bytes: Vec<u8>) -> AgentMessage {
        AgentMessage::Generation { request: self.request, part: AnswerPart::Text(bytes) }
    }
}

fn millis_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
