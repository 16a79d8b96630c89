//! Generations under way: the path of an order to its node, and of the answer back to the caller.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hatchery_common::{
    generate::GenerationOrder,
    id::RequestId,
    session::{AnswerPart, CoordinatorMessage},
};
use tokio::{sync::mpsc, time::timeout};

use crate::{core::handle::SessionNumber, sessions::registry::Outbox};

/// Generations under way at one time.
const GENERATIONS_MAX: usize = 256;
/// A node may be silent for so long between two parts of an answer; the first may take loading a model.
const SILENCE_MAX: Duration = Duration::from_mins(2);
/// Parts of one answer that its caller has not read yet.
const PARTS_UNREAD_MAX: usize = 1024;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GenerateError {
    /// No node that would do holds the checkpoint.
    #[error("checkpoint {checkpoint} is not ready on {place}: {states}")]
    NotReady {
        checkpoint: String,
        /// `any connected node`, or the one named.
        place: String,
        states: String,
    },
    /// Too much is asked at one time.
    #[error("{GENERATIONS_MAX} answers are on their way already; try again when some have ended")]
    TooMany,
    /// The node's session ended.
    #[error("node {node} disconnected before its answer was complete; try again")]
    NodeLeft { node: String },
    /// The node says nothing.
    #[error("node {node} sent no bytes for {} s; try again, or another node", SILENCE_MAX.as_secs())]
    Silent { node: String },
    /// The node could not do it.
    #[error("node {node} could not answer: {why}")]
    Failed { node: String, why: String },
    /// The node sent what it was not asked for.
    #[error(
        "node {node} sent an invalid answer, with an empty part or more bytes than requested; try another node"
    )]
    OrderBroken { node: String },
    /// The caller did not read.
    #[error(
        "the answer was stopped, as {PARTS_UNREAD_MAX} parts of it were unread; read faster, or request less"
    )]
    Unread,
}

/// The generations under way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generations {
    waiting: Arc<Mutex<BTreeMap<RequestId, Waiting>>>,
}

#[derive(Debug)]
struct Waiting {
    session: SessionNumber,
    node_name: String,
    /// What the order still allows.
    bytes_left: usize,
    parts: mpsc::Sender<Part>,
    /// Room for the end, so that it never waits for a slow caller.
    end: mpsc::OwnedPermit<Part>,
}

type Part = Result<AnswerPart, GenerateError>;

impl Waiting {
    fn pass_on(&mut self, text: Vec<u8>) -> Result<(), GenerateError> {
        match self.bytes_left.checked_sub(text.len()) {
            Some(left) if !text.is_empty() => self.bytes_left = left,
            _ => return Err(GenerateError::OrderBroken { node: self.node_name.clone() }),
        }
        self.parts.try_send(Ok(AnswerPart::Text(text))).map_err(|_| GenerateError::Unread)
    }
}

/// A generation under way. Dropping it before its end tells the node to stop.
#[derive(Debug)]
pub(crate) struct Generation {
    request: RequestId,
    node_name: String,
    parts: mpsc::Receiver<Part>,
    /// Whether the node has said its last word.
    has_ended: bool,
    outbox: Outbox,
    generations: Generations,
}

impl Generations {
    /// Sends an order over a session.
    pub(crate) async fn ask(
        &self,
        outbox: Outbox,
        node_name: String,
        order: GenerationOrder,
    ) -> Result<Generation, GenerateError> {
        let request = RequestId::random();
        let (parts, unread) = mpsc::channel(PARTS_UNREAD_MAX + 1);
        let end = parts.clone().try_reserve_owned().expect("a new channel has room");
        {
            let mut waiting = self.lock();
            if waiting.len() >= GENERATIONS_MAX {
                return Err(GenerateError::TooMany);
            }
            let (session, bytes_left) = (outbox.session, order.max_bytes as usize);
            let caller = Waiting { session, node_name: node_name.clone(), bytes_left, parts, end };
            waiting.insert(request, caller);
        }
        let order = CoordinatorMessage::Generation { request, order };
        let left = GenerateError::NodeLeft { node: node_name.clone() };
        let generation = Generation {
            request,
            node_name,
            parts: unread,
            has_ended: false,
            outbox,
            generations: self.clone(),
        };
        generation.outbox.messages.send(order).await.map_err(|_| left)?;
        Ok(generation)
    }

    /// Passes on what came over `session`, and never waits. What nobody waits for, or what breaks the order's limits or
    /// is not read, ends here.
    pub(crate) fn pass_on(&self, session: SessionNumber, request: RequestId, part: AnswerPart) {
        let mut waiting = self.lock();
        let Entry::Occupied(mut caller) = waiting.entry(request) else { return };
        if caller.get().session != session {
            return;
        }
        let last = match part {
            AnswerPart::Text(text) => match caller.get_mut().pass_on(text) {
                Ok(()) => return,
                Err(error) => Err(error),
            },
            last => Ok(last),
        };
        caller.remove().end.send(last);
    }

    /// Ends all that waits for a session that has closed.
    pub(crate) fn session_closed(&self, session: SessionNumber) {
        self.lock().retain(|_, caller| caller.session != session);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<RequestId, Waiting>> {
        // Nothing panics while it is held; were it so, the map is whole all the same.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generation {
    /// The next part: bytes, or the figures at the end.
    pub(crate) async fn next(&mut self) -> Result<AnswerPart, GenerateError> {
        let node = || self.node_name.clone();
        let part = match timeout(SILENCE_MAX, self.parts.recv()).await {
            Ok(Some(part)) => part?,
            Ok(None) => return Err(GenerateError::NodeLeft { node: node() }),
            Err(_) => return Err(GenerateError::Silent { node: node() }),
        };
        self.has_ended = !matches!(part, AnswerPart::Text(_));
        match part {
            AnswerPart::Failed(why) => Err(GenerateError::Failed { node: self.node_name.clone(), why }),
            part => Ok(part),
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.generations.lock().remove(&self.request);
        if !self.has_ended {
            let message = CoordinatorMessage::GenerationCancelled { request: self.request };
            // If the session has no room for it, the node makes a few bytes that nobody reads.
            drop(self.outbox.messages.try_send(message));
        }
    }
}
