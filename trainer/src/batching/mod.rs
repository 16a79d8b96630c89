//! Many answers of one model at once: who is read, who writes, who waits. Knows nothing of where questions come from.

mod open;

use std::{collections::VecDeque, mem};

use hatchery_bdh::{EMPTY_PROMPT, Sampler, StopFilter};
use hatchery_common::{
    generate::{FinishReason, GenerationOrder},
    id::RequestId,
};
use tch::TchError;

pub use self::open::{AT_ONCE_MAX, OpenError};
use crate::recurrent::Recurrent;

/// What came of an answer in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub request: RequestId,
    /// New bytes; it may be that there are none.
    pub bytes: Vec<u8>,
    /// Whether and how it ended.
    pub end: Option<End>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Finished(FinishReason),
    /// The model's logits are no finite numbers.
    Broken,
}

/// An answer that was asked for.
#[derive(Debug)]
struct Answer {
    request: RequestId,
    prompt: Vec<u8>,
    sampler: Sampler,
    filter: StopFilter,
    left_bytes: u32,
    position: u64,
    /// Chosen, and not fed yet.
    pending: u8,
}

/// Answers in the making.
#[derive(Debug)]
pub struct Batcher {
    /// Has one stream for each answer that writes, and the last one for the prompt that is being read.
    engine: Recurrent,
    vocabulary: usize,
    at_once_max: usize,
    writing: Vec<Answer>,
    reading: Option<Answer>,
    waiting: VecDeque<Answer>,
}

impl Batcher {
    /// Of a model in `engine`, which has room for one stream more than answers at once, and knows `vocabulary` tokens.
    pub fn new(engine: Recurrent, vocabulary: usize, at_once_max: usize) -> Self {
        Self {
            engine,
            vocabulary,
            at_once_max,
            writing: Vec::with_capacity(at_once_max),
            reading: None,
            waiting: VecDeque::new(),
        }
    }

    /// Most answers at once.
    pub fn at_once_max(&self) -> usize {
        self.at_once_max
    }

    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Answers that wait, are read for or write.
    pub fn len(&self) -> usize {
        self.writing.len() + usize::from(self.reading.is_some()) + self.waiting.len()
    }

    /// Begins an answer, or goes on after what was `told` of it already; or says why not.
    pub fn begin(&mut self, request: RequestId, order: GenerationOrder, told: &[u8]) -> Result<(), String> {
        order.check().map_err(|error| error.to_string())?;
        if self.len() >= self.at_once_max {
            return Err(format!("{} answers are in progress, as many as fit into memory", self.len()));
        }
        let left_bytes = (order.max_bytes as usize).saturating_sub(told.len()) as u32;
        if left_bytes == 0 {
            return Err("none is left of its bytes to generate".to_owned());
        }
        let mut sampler = Sampler::new(&order.sampling);
        sampler.see(&order.prompt);
        sampler.follow(told);
        let mut prompt = if order.prompt.is_empty() { EMPTY_PROMPT.to_vec() } else { order.prompt };
        prompt.extend(told);
        self.waiting.push_back(Answer {
            request,
            prompt,
            sampler,
            filter: StopFilter::new(order.stop),
            left_bytes,
            position: 0,
            pending: 0,
        });
        Ok(())
    }

    /// Forgets an answer, if it is being made.
    pub fn cancel(&mut self, request: RequestId) -> Result<(), TchError> {
        self.waiting.retain(|answer| answer.request != request);
        if self.reading.as_ref().is_some_and(|answer| answer.request == request) {
            self.reading = None;
        }
        match self.writing.iter().position(|answer| answer.request == request) {
            Some(index) => self.remove(index),
            None => Ok(()),
        }
    }

    /// Reads on in one prompt, and makes one byte of each answer whose prompt is read.
    pub fn step(&mut self) -> Result<Vec<Made>, TchError> {
        let mut made = Vec::with_capacity(self.at_once_max);
        self.read(&mut made)?;
        self.write(&mut made)?;
        Ok(made)
    }

    fn read(&mut self, made: &mut Vec<Made>) -> Result<(), TchError> {
        // The last stream is nobody's while nothing is read.
        let stream = self.at_once_max;
        if self.reading.is_none() {
            self.reading = self.waiting.pop_front();
            if self.reading.is_some() {
                self.engine.clear(stream)?;
            }
        }
        let Some(answer) = &mut self.reading else { return Ok(()) };
        let rest = &answer.prompt[answer.position as usize..];
        let part = &rest[..rest.len().min(self.engine.bytes_at_once(answer.position))];
        let logits = self.engine.feed(stream, &[answer.position], part)?;
        answer.position += part.len() as u64;
        if part.len() < rest.len() {
            return Ok(());
        }
        let Some(read) = self.reading.take() else { return Ok(()) };
        // Who waits with the same prompt need not read it again.
        let position = read.position;
        let (same, others) = self.waiting.drain(..).partition(|answer| answer.prompt == read.prompt);
        self.waiting = others;
        for answer in [VecDeque::from([read]), same].into_iter().flatten() {
            let mut answer = Answer { position, ..answer };
            let new = answer.take(&logits);
            if new.end.is_none() {
                self.engine.copy(stream, self.writing.len())?;
                self.writing.push(answer);
            }
            made.push(new);
        }
        Ok(())
    }

    fn write(&mut self, made: &mut Vec<Made>) -> Result<(), TchError> {
        if self.writing.is_empty() {
            return Ok(());
        }
        let (positions, bytes): (Vec<u64>, Vec<u8>) =
            self.writing.iter().map(|answer| (answer.position, answer.pending)).unzip();
        let logits = self.engine.feed(0, &positions, &bytes)?;
        for (answer, logits) in self.writing.iter_mut().zip(logits.chunks_exact(self.vocabulary)) {
            answer.position += 1;
            made.push(answer.take(logits));
        }
        let ended = made[made.len() - self.writing.len()..].iter().map(|new| new.end.is_some());
        let ended: Vec<usize> =
            ended.enumerate().filter(|(_, ended)| *ended).map(|(index, _)| index).collect();
        // The last ones first: only streams that stay are moved.
        ended.into_iter().rev().try_for_each(|index| self.remove(index))
    }

    /// Takes an answer out of those that write; the last one's stream goes to its place.
    fn remove(&mut self, index: usize) -> Result<(), TchError> {
        let last = self.writing.len() - 1;
        if index != last {
            self.engine.copy(last, index)?;
        }
        drop(self.writing.swap_remove(index));
        Ok(())
    }
}

impl Answer {
    /// Chooses the next byte by `logits`.
    fn take(&mut self, logits: &[f32]) -> Made {
        self.left_bytes = self.left_bytes.saturating_sub(1);
        let end = match self.sampler.choose(logits) {
            None => Some(End::Broken),
            Some(byte) => {
                self.pending = byte;
                let is_stopped = self.filter.push(byte);
                let is_last = self.left_bytes == 0;
                let reason = if is_stopped { FinishReason::StopString } else { FinishReason::MaxBytes };
                (is_stopped || is_last).then_some(End::Finished(reason))
            }
        };
        if end.is_some() {
            self.filter.release_all();
        }
        let bytes = std::iter::from_fn(|| self.filter.pop()).collect();
        // What is read is not needed any more.
        drop(mem::take(&mut self.prompt));
        Made { request: self.request, bytes, end }
    }
}
