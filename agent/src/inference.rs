//! Answers: a few at a time on threads of their own, streamed as they are made.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hatchery_bdh::{Engine, Generation, Session, Window};
use hatchery_common::{
    generate::{FinishReason, GenerationFinished, GenerationOrder},
    id::RequestId,
    session::{AgentMessage, AnswerPart},
};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{checkpoint_store::CheckpointStore, models::Models};

/// Most requests at work or waiting.
const REQUESTS_MAX: usize = 64;
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
    at_once: Arc<Semaphore>,
    requests: Arc<Mutex<BTreeMap<RequestId, CancellationToken>>>,
}

/// Why an answer broke off.
enum Broken {
    /// Nobody listens any more.
    Cancelled,
    Failed(String),
}

/// Where an answer's parts go.
#[derive(Clone)]
struct Listener {
    request: RequestId,
    outbox: mpsc::Sender<AgentMessage>,
    cancelled: CancellationToken,
}

impl Inference {
    pub(crate) fn new(store: CheckpointStore, models: Arc<Models>, at_once: usize) -> Self {
        Self { store, models, at_once: Arc::new(Semaphore::new(at_once)), requests: Arc::default() }
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
                    "this node is busy: {REQUESTS_MAX} requests wait already; try again, or another node"
                );
                Err(Broken::Failed(why))
            } else {
                inference.wait_and_make(order, received, &listener).await
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

    async fn wait_and_make(
        &self,
        order: GenerationOrder,
        received: Instant,
        listener: &Listener,
    ) -> Result<GenerationFinished, Broken> {
        let permit = tokio::select! {
            permit = Arc::clone(&self.at_once).acquire_owned() => permit.map_err(|_| Broken::Cancelled),
            () = listener.cancelled.cancelled() => Err(Broken::Cancelled),
        };
        let made = match permit {
            Ok(permit) => {
                let (inference, listener) = (self.clone(), listener.clone());
                let making = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
                    inference.make(&order, received, &listener)
                });
                let failed = |error| Err(Broken::Failed(format!("a fault of the agent: {error}")));
                making.await.unwrap_or_else(failed)
            }
            Err(broken) => Err(broken),
        };
        self.requests().remove(&listener.request);
        made
    }

    /// Makes the bytes. Blocks.
    fn make(
        &self,
        order: &GenerationOrder,
        received: Instant,
        listener: &Listener,
    ) -> Result<GenerationFinished, Broken> {
        let failed = |error: &dyn std::fmt::Display| Broken::Failed(error.to_string());
        order.check().map_err(|error| failed(&error))?;
        let folder = self.store.folder(order.checkpoint).ok_or_else(|| {
            Broken::Failed(format!("this node does not hold the checkpoint {} yet", order.checkpoint.short()))
        })?;
        let (model, loaded) = self.models.get(order.checkpoint, &folder).map_err(|error| failed(&error))?;
        let engine = Engine::new(model, Window::Default).map_err(|error| failed(&error))?;
        let mut session = Session::new(engine, &order.sampling);
        for part in order.prompt.chunks(PREFILL_BYTES) {
            session.feed(part);
            listener.still_there()?;
        }
        let mut generation =
            Generation::resume(session, b"", order.max_bytes as usize).with_stops(order.stop.clone());

        let mut finished = GenerationFinished { loaded, ..GenerationFinished::default() };
        let (mut chunk, mut sent) = (Vec::new(), received);
        for byte in generation.by_ref() {
            chunk.push(byte);
            finished.bytes += 1;
            if finished.bytes == 1 {
                finished.first_byte_ms = millis_since(received);
            }
            if finished.bytes == 1 || chunk.len() >= CHUNK_BYTES || sent.elapsed() >= CHUNK_EVERY {
                listener.send(std::mem::take(&mut chunk))?;
                sent = Instant::now();
            }
        }
        if generation.is_broken() {
            let why = "the model's figures are no numbers any more; its training went wrong";
            return Err(Broken::Failed(why.to_owned()));
        }
        if !chunk.is_empty() {
            listener.send(chunk)?;
        }
        if generation.is_stopped() {
            finished.finish_reason = FinishReason::StopString;
        }
        finished.latency_ms = millis_since(received);
        Ok(finished)
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<RequestId, CancellationToken>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    fn still_there(&self) -> Result<(), Broken> {
        let gone = self.cancelled.is_cancelled() || self.outbox.is_closed();
        if gone { Err(Broken::Cancelled) } else { Ok(()) }
    }

    fn send(&self, bytes: Vec<u8>) -> Result<(), Broken> {
        self.still_there()?;
        let message = AgentMessage::Generation { request: self.request, part: AnswerPart::Text(bytes) };
        self.outbox.blocking_send(message).map_err(|_| Broken::Cancelled)
    }
}

fn millis_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
