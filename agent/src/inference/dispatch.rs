//! Where answers and what makes them meet: who is at work and who waits on the processor, what a GPU has in the making,
//! and how fast both are.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hatchery_common::{
    answerer::{AnswererCommand, AnswererEvent, Pace},
    device::Device,
    generate::{FinishReason, GenerationOrder},
    id::RequestId,
};
use tokio::sync::{mpsc, watch};

use super::choice::{self, Place, Processor, Work, choose, is_worth_a_move, is_worth_a_start};
use crate::replicas::models::ModelKey;

/// Most models whose speed is remembered.
const RATES_MAX: usize = 64;
/// The speed of a model is a mean over the last so many bytes or so.
const RATE_STEPS: f64 = 4096.0;
/// So many bytes have to be known of a model's speed before an answer moves because of it: the first ones also bring the model's
/// memory into the processor's.
const KNOWN_STEPS_MIN: f64 = 64.0;

/// The queue; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct DispatchQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    /// Answers that the processor makes at the same time.
    at_once: usize,
    tickets: u64,
    /// The answers that the processor makes or is to make, in their order.
    queue: BTreeMap<Position, Queued>,
    rates: BTreeMap<ModelKey, Rate>,
    gpu: Option<Gpu>,
    /// The model that a GPU was last ready for, and how it was.
    known: Option<(ModelKey, Vec<Pace>, u32)>,
}

/// A place in the queue: when the answer was asked for, and a number of its own. What a GPU gives back goes before all that was
/// asked for later.
type Position = (Instant, u64);

/// What answers: a checkpoint that is held here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Served {
    pub(crate) key: ModelKey,
    pub(crate) folder: PathBuf,
}

#[derive(Debug)]
struct Queued {
    served: Served,
    work: Work,
    waits: bool,
    /// Once a GPU has given an answer back, it stays here.
    may_move: bool,
}

/// How long something takes, as it took.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    secs: f64,
    steps: f64,
}

/// A GPU that takes orders.
#[derive(Debug)]
struct Gpu {
    key: ModelKey,
    device: Device,
    pace: Vec<Pace>,
    sequences_max: u32,
    commands: mpsc::Sender<AnswererCommand>,
    answers: BTreeMap<RequestId, InProgress>,
}

/// An answer that a GPU makes.
#[derive(Debug)]
struct InProgress {
    left_bytes: usize,
    /// Of the prompt, until the first byte is made.
    unread_bytes: usize,
    /// Holds no more than the answer's bytes, however slow its listener is.
    parts: mpsc::UnboundedSender<Part>,
    /// The room for its cancellation: one that is lost would keep a place on the GPU.
    cancel: mpsc::OwnedPermit<AnswererCommand>,
}

/// What comes from a GPU of one answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Part {
    Text(Vec<u8>),
    Finished(FinishReason),
}

impl DispatchQueue {
    /// One with a processor that makes `at_once` answers at the same time.
    pub(crate) fn new(at_once: usize) -> Self {
        let state = State {
            at_once,
            tickets: 0,
            queue: BTreeMap::new(),
            rates: BTreeMap::new(),
            gpu: None,
            known: None,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), changed: watch::Sender::new(()) }))
    }

    /// Tells of all that may change where an answer is made.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Puts an answer that was asked for at `asked` into the processor's queue, from which it may move to a GPU or not.
    pub(crate) fn enqueue(&self, served: Served, work: Work, may_move: bool, asked: Instant) -> Ticket {
        let position = self.change(|state| {
            state.tickets += 1;
            let position = (asked, state.tickets);
            state.queue.insert(position, Queued { served, work, waits: true, may_move });
            position
        });
        Ticket { queue: self.clone(), position }
    }

    /// The processor did so much of a model's work in so much time.
    pub(crate) fn measured(&self, key: ModelKey, work: Work, took: Duration) {
        self.change(|state| state.measured(key, work.steps_on_processor(), took.as_secs_f64()));
    }

    /// What a GPU would best answer with, if it is worth a process at all: of the models that are not paused the one that most
    /// wait for too long.
    pub(crate) fn demand(&self, is_paused: impl Fn(ModelKey) -> bool) -> Option<Served> {
        self.state().demand(is_paused)
    }

    /// Whether a GPU without an answer in the making is ready for `key`, for which nobody waits, while it is wanted for
    /// another model.
    pub(crate) fn is_wanted_otherwise(&self, key: ModelKey, is_paused: impl Fn(ModelKey) -> bool) -> bool {
        let state = self.state();
        let has_work = state.gpu.as_ref().is_none_or(|gpu| !gpu.answers.is_empty());
        !has_work
            && !state.queue.values().any(|queued| queued.may_go_to_a_gpu() && queued.served.key == key)
            && state.demand(is_paused).is_some_and(|served| served.key != key)
    }

    /// A GPU takes orders from now on. An error says what is wrong with its figures.
    pub(crate) fn open(
        &self,
        key: ModelKey,
        device: Device,
        sequences_max: u32,
        pace: Vec<Pace>,
        commands: mpsc::Sender<AnswererCommand>,
    ) -> Result<(), String> {
        let secs_right = pace.iter().all(|pace| pace.secs_per_step.is_finite() && pace.secs_per_step > 0.0);
        let is_rising = pace.is_sorted_by(|before, after| before.sequences < after.sequences);
        if sequences_max == 0 || pace.is_empty() || !secs_right || !is_rising {
            return Err(format!("it reports implausible figures: {sequences_max} answers at once, {pace:?}"));
        }
        self.change(|state| {
            state.known = Some((key, pace.clone(), sequences_max));
            state.gpu = Some(Gpu { key, device, pace, sequences_max, commands, answers: BTreeMap::new() });
        });
        Ok(())
    }

    /// The GPU takes no more orders; what it was making has to go on elsewhere.
    pub(crate) fn close(&self) {
        self.change(|state| state.gpu = None);
    }

    /// How many answers the GPU has in the making.
    pub(crate) fn in_progress(&self) -> usize {
        self.state().gpu.as_ref().map_or(0, |gpu| gpu.answers.len())
    }

    /// Takes what a GPU says of an answer. An error says how it breaks its word.
    pub(crate) fn hear(&self, event: AnswererEvent) -> Result<(), String> {
        match event {
            AnswererEvent::Text { request, bytes } => {
                let mut state = self.state();
                let gpu = state.gpu.as_mut();
                // Of an answer that nobody waits for any more, something may be on its way.
                let Some(making) = gpu.and_then(|gpu| gpu.answers.get_mut(&request)) else {
                    return Ok(());
                };
                let left_bytes = making.left_bytes.checked_sub(bytes.len());
                making.left_bytes = left_bytes.ok_or("it generated more bytes than requested")?;
                if bytes.is_empty() {
                    return Err("it reported an empty answer".to_owned());
                }
                // With less to read before it, the GPU may be the better place for somebody else.
                let has_read = std::mem::take(&mut making.unread_bytes) > 0;
                making.tell(Part::Text(bytes));
                drop(state);
                if has_read {
                    self.0.changed.send_replace(());
                }
            }
            AnswererEvent::Finished { request, finish_reason } => {
                let Some(making) = self.change(|state| state.take_away(request)) else { return Ok(()) };
                if finish_reason == FinishReason::MaxBytes && making.left_bytes > 0 {
                    return Err(format!("it ended an answer {} bytes early", making.left_bytes));
                }
                making.tell(Part::Finished(finish_reason));
            }
            AnswererEvent::Failed { request, why } => {
                tracing::info!(%request, why, "the GPU cannot generate an answer");
                self.change(|state| state.take_away(request));
            }
            AnswererEvent::Ready { .. } => return Err("it reported ready twice".to_owned()),
        }
        Ok(())
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.0.changed.send_replace(());
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn measured(&mut self, key: ModelKey, steps: f64, secs: f64) {
        if steps <= 0.0 {
            return;
        }
        let rate = self.rates.entry(key).or_default();
        rate.secs += secs;
        rate.steps += steps;
        let share = (RATE_STEPS / rate.steps).min(1.0);
        rate.secs *= share;
        rate.steps *= share;
        if self.rates.len() > RATES_MAX {
            // Whichever it is: what answers is measured again at once.
            let other = self.rates.keys().find(|other| **other != key).copied();
            other.map(|other| self.rates.remove(&other));
        }
    }

    fn secs_per_step(&self, key: ModelKey) -> Option<f64> {
        self.rates.get(&key).map(|rate| rate.secs / rate.steps)
    }

    /// The processor as the answer with this turn, which waits, finds it.
    fn processor(&self, position: Position, key: ModelKey) -> Processor {
        let own = self.secs_per_step(key);
        let secs = |queued: &Queued| {
            // One of a model that nobody knows is taken for one of the same.
            let secs_per_step = self.secs_per_step(queued.served.key).or(own).unwrap_or(0.0);
            queued.work.steps_on_processor() * secs_per_step
        };
        let is_ahead = |(other, queued): &(&Position, &Queued)| !queued.waits || **other < position;
        let ahead = || self.queue.iter().filter(is_ahead).map(|(_, queued)| queued);
        Processor {
            at_once: self.at_once,
            ahead: ahead().count(),
            ahead_secs: ahead().map(secs).sum(),
            secs_per_step: own,
        }
    }

    fn demand(&self, is_paused: impl Fn(ModelKey) -> bool) -> Option<Served> {
        let mut wanted: BTreeMap<ModelKey, (usize, &Served)> = BTreeMap::new();
        for (position, queued) in self.queue.iter().filter(|(_, queued)| queued.may_go_to_a_gpu()) {
            let key = queued.served.key;
            if is_paused(key) {
                continue;
            }
            let known = self.known.as_ref().filter(|(known, ..)| *known == key);
            let known = known.map(|(_, pace, sequences_max)| choice::Gpu {
                pace,
                sequences: 0,
                sequences_max: *sequences_max,
                unread_bytes: 0,
            });
            if is_worth_a_start(queued.work, &self.processor(*position, key), known.as_ref()) {
                wanted.entry(key).or_insert((0, &queued.served)).0 += 1;
            }
        }
        wanted.into_values().max_by_key(|(count, _)| *count).map(|(_, served)| served.clone())
    }

    /// Begins an answer on the processor, if that has room and nobody waits longer.
    fn begin(&mut self, position: Position) -> bool {
        let at_work = self.queue.values().filter(|queued| !queued.waits).count();
        let next = self.queue.iter_mut().find(|(_, queued)| queued.waits);
        match next {
            Some((next, queued)) if *next == position && at_work < self.at_once => {
                queued.waits = false;
                true
            }
            _ => false,
        }
    }

    /// Begins an answer on the GPU, if it is at its end sooner there. Else it stays in the queue.
    fn move_to_gpu(
        &mut self,
        position: Position,
        request: RequestId,
        order: &GenerationOrder,
    ) -> Option<(Device, mpsc::UnboundedReceiver<Part>)> {
        let queued = self.queue.get(&position).filter(|queued| queued.may_go_to_a_gpu())?;
        let processor = self.processor(position, queued.served.key);
        let gpu = self.gpu.as_ref().filter(|gpu| gpu.key == queued.served.key)?;
        let is_better = choose(queued.work, &processor, Some(&gpu.figures())) == Place::Gpu;
        is_better.then(|| self.hand_over(position, request, order, &[]))?
    }

    /// The same for one at work on the processor, which has `done` so much and `took` so long for it, and of which so much was
    /// `told`. Those that wait go first.
    fn move_at_work(
        &mut self,
        position: Position,
        request: RequestId,
        order: &GenerationOrder,
        told: &[u8],
        done: Work,
        took: Duration,
    ) -> Option<(Device, mpsc::UnboundedReceiver<Part>)> {
        let queued = self.queue.get(&position).filter(|queued| queued.may_move)?;
        let known = self.rates.get(&queued.served.key).copied().unwrap_or_default();
        let steps = known.steps + done.steps_on_processor();
        let secs_per_step = (steps >= KNOWN_STEPS_MIN).then(|| (known.secs + took.as_secs_f64()) / steps)?;
        let left_secs = queued.work.steps_on_processor() * secs_per_step;
        let gpu = self.gpu.as_ref().filter(|gpu| gpu.key == queued.served.key)?;
        let waits = |other: &Queued| other.may_go_to_a_gpu() && other.served.key == gpu.key;
        let is_better = !self.queue.values().any(waits)
            && is_worth_a_move(left_secs, Work::whole(order, told), &gpu.figures());
        is_better.then(|| self.hand_over(position, request, order, told))?
    }

    /// Has the GPU make an answer, or what is left of it.
    fn hand_over(
        &mut self,
        position: Position,
        request: RequestId,
        order: &GenerationOrder,
        told: &[u8],
    ) -> Option<(Device, mpsc::UnboundedReceiver<Part>)> {
        let gpu = self.gpu.as_mut()?;
        let command = AnswererCommand::Answer { request, order: order.clone(), told: told.to_vec() };
        // One that does not read its commands has no room either.
        let cancel = gpu.commands.clone().try_reserve_owned().ok()?;
        gpu.commands.try_send(command).ok()?;
        let (parts, heard) = mpsc::unbounded_channel();
        let Work { bytes, prompt_bytes } = Work::whole(order, told);
        gpu.answers
            .insert(request, InProgress { left_bytes: bytes, unread_bytes: prompt_bytes, parts, cancel });
        let device = gpu.device;
        self.queue.remove(&position);
        Some((device, heard))
    }

    fn take_away(&mut self, request: RequestId) -> Option<InProgress> {
        self.gpu.as_mut()?.answers.remove(&request)
    }
}

impl Gpu {
    /// As an answer finds it.
    fn figures(&self) -> choice::Gpu<'_> {
        choice::Gpu {
            pace: &self.pace,
            sequences: self.answers.len() as u32,
            sequences_max: self.sequences_max,
            unread_bytes: self.answers.values().map(|making| making.unread_bytes).sum(),
        }
    }
}

impl Queued {
    fn may_go_to_a_gpu(&self) -> bool {
        self.waits && self.may_move
    }
}

impl InProgress {
    fn tell(&self, part: Part) {
        // A listener that is gone says so itself.
        let _gone = self.parts.send(part);
    }
}

/// A place in the processor's queue, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    queue: DispatchQueue,
    position: Position,
}

impl Ticket {
    /// Leaves the queue for the GPU, if the answer is at its end sooner there.
    pub(crate) fn move_to_gpu(&self, request: RequestId, order: &GenerationOrder) -> Option<OnGpu> {
        let moved = self.queue.state().move_to_gpu(self.position, request, order);
        Some(self.moved(request, moved?))
    }

    /// Leaves the processor, which has `done` so much of it and `took` so long for that, if it is at its end much sooner on the
    /// GPU. It goes on after what was `told` of it.
    pub(crate) fn move_at_work(
        &self,
        request: RequestId,
        order: &GenerationOrder,
        told: &[u8],
        done: Work,
        took: Duration,
    ) -> Option<OnGpu> {
        let moved = self.queue.state().move_at_work(self.position, request, order, told, done, took);
        Some(self.moved(request, moved?))
    }

    /// The GPU has it.
    fn moved(&self, request: RequestId, (device, parts): (Device, mpsc::UnboundedReceiver<Part>)) -> OnGpu {
        self.queue.0.changed.send_replace(());
        OnGpu { queue: self.queue.clone(), device, request, parts }
    }

    /// Begins on the processor, if that has room and nobody waits longer. It is at work on it until this is
    /// dropped or moves to a GPU.
    pub(crate) fn begin(&self) -> bool {
        let begins = self.queue.state().begin(self.position);
        if begins {
            self.queue.0.changed.send_replace(());
        }
        begins
    }

    /// So much is left to do.
    pub(crate) fn left(&self, work: Work) {
        if let Some(queued) = self.queue.state().queue.get_mut(&self.position) {
            queued.work = work;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queue.change(|state| state.queue.remove(&self.position));
    }
}

/// An answer that the GPU makes. Dropping it before its end cancels it there.
#[derive(Debug)]
pub(crate) struct OnGpu {
    queue: DispatchQueue,
    pub(crate) device: Device,
    request: RequestId,
    parts: mpsc::UnboundedReceiver<Part>,
}

impl OnGpu {
    /// What comes next. None: the GPU does not make it to its end.
    pub(crate) async fn next(&mut self) -> Option<Part> {
        self.parts.recv().await
    }
}

impl Drop for OnGpu {
    fn drop(&mut self) {
        self.queue.change(|state| {
            if let Some(making) = state.take_away(self.request) {
                making.cancel.send(AnswererCommand::Cancel { request: self.request });
            }
        });
    }
}

#[cfg(test)]
mod tests;
