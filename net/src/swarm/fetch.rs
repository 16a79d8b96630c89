//! One blob on its way here.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use hatchery_common::{
    blob::{BlobError, BlobStore, BlobWriter, PieceManifest},
    id::{BlobId, NodeId},
    swarm::{FetchPlan, PlannedParent, Trouble, Wait},
};
use hatchery_proto::v1::{self, to_parent};
use hatchery_swarm::{Arrival, Random, Receiver, Step, ToParent};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    EVENTS_AHEAD, HOLDER_WITHIN, PIECE_WITHIN, PLAN_WITHIN, SLOT_WITHIN, Shares,
    parent::{self, Heard, Line, ParentNumber, named},
    pool::Pool,
    share::{Held, Share},
    wire,
};
use crate::{RateLimit, blocking, transfer::BlobClient};

/// How long the coordinator, or a parent, may take to give a manifest.
const MANIFEST_WITHIN: Duration = Duration::from_secs(5);
/// How long another writer of the same blob is waited for: one whose fetch ended may be just about to let go.
const BUSY_WITHIN: Duration = Duration::from_secs(5);
const BUSY_POLL: Duration = Duration::from_millis(20);
/// How often it is looked whether all takes too long.
const PATIENCE_LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most events that are taken before the next asks go out.
const EVENTS_AT_ONCE: usize = 32;

/// Why a blob did not come from other nodes.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The tracker did not say from whom to fetch it.
    #[error("the coordinator assigned no source for blob {blob} within {} s", PLAN_WITHIN.as_secs())]
    NoPlan {
        /// The blob.
        blob: BlobId,
    },
    /// Nobody has it.
    #[error("no reachable node has any of blob {blob}")]
    NoHolder {
        /// The blob.
        blob: BlobId,
    },
    /// Nothing comes any more.
    #[error("no piece of blob {blob} arrived for {} s; {missing} of {count} are missing", waited.as_secs())]
    Stuck {
        /// The blob.
        blob: BlobId,
        /// Pieces that are missing.
        missing: u32,
        /// Pieces that it has.
        count: u32,
        /// How long nothing has come.
        waited: Duration,
    },
    /// It is not what was expected.
    #[error("blob {blob} has {found} bytes, but {expected} were expected")]
    Size {
        /// The blob.
        blob: BlobId,
        /// What its manifest says.
        found: u64,
        /// What was expected.
        expected: u64,
    },
    /// This node's store cannot take it.
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// One blob on its way here.
pub(super) struct Fetch<'a> {
    pub(super) blob: BlobId,
    pub(super) size_bytes: u64,
    pub(super) store: &'a BlobStore,
    pub(super) shares: &'a Shares,
    pub(super) pool: &'a Arc<Pool>,
    pub(super) limit: RateLimit,
    /// Pieces that are here, for others to read.
    pub(super) held: Arc<AtomicU32>,
    pub(super) plan: watch::Receiver<Option<FetchPlan>>,
    pub(super) received_bytes: &'a Arc<AtomicU64>,
    pub(super) troubles: &'a mpsc::Sender<(BlobId, Trouble)>,
}

/// What runs while the blob comes.
struct Running<'a, F> {
    fetch: Fetch<'a>,
    on_bytes: F,
    writer: Held,
    /// What is here already is served meanwhile.
    share: Serving,
    receiver: Receiver,
    parents: HashMap<ParentNumber, Parent>,
    last_number: ParentNumber,
    events: mpsc::Sender<(ParentNumber, Heard)>,
    start: Instant,
    /// When a new piece last came, or it was last found that there is a good reason for none.
    last_piece: Instant,
    /// Since when it waits for a place at a parent.
    waits_since: Option<Instant>,
}

/// A blob is served from its first pieces on; an end before the last one ends that too.
struct Serving(Arc<Share>, bool);

impl Drop for Serving {
    fn drop(&mut self) {
        if !self.1 {
            self.0.close();
        }
    }
}

struct Parent {
    planned: PlannedParent,
    outbound: Option<mpsc::Sender<v1::ToParent>>,
    _line: AbortOnDropHandle<()>,
}

impl Fetch<'_> {
    /// Fetches it.
    pub(super) async fn run(
        mut self,
        coordinator: &BlobClient,
        mut on_bytes: impl FnMut(u64) + Send,
    ) -> Result<(), FetchError> {
        let Some(writer) = self.open(coordinator).await? else {
            on_bytes(self.size_bytes);
            return Ok(());
        };
        let (found, expected) = (writer.manifest().size_bytes(), self.size_bytes);
        if found != expected {
            return Err(FetchError::Size { blob: self.blob, found, expected });
        }
        let writer = Held::new(writer);
        let share = Serving(self.shares.grow(writer.clone()), false);
        let have = writer.have();
        let size_of = |index| writer.manifest().piece_range(index).map_or(0, |range| range.end - range.start);
        on_bytes(have.indexes().map(size_of).sum());
        self.held.store(have.held(), Ordering::Relaxed);
        let random = Random::new(RandomState::new().build_hasher().finish());
        let receiver = Receiver::new(have, random);
        let (events, heard) = mpsc::channel(EVENTS_AHEAD);
        let now = Instant::now();
        let mut running = Running {
            fetch: self,
            on_bytes,
            writer,
            share,
            receiver,
            parents: HashMap::new(),
            last_number: 0,
            events,
            start: now,
            last_piece: now,
            waits_since: None,
        };
        running.run(heard).await
    }

    /// A writer for the blob; none if it has come meanwhile.
    async fn open(&mut self, coordinator: &BlobClient) -> Result<Option<BlobWriter>, FetchError> {
        let deadline = Instant::now() + BUSY_WITHIN;
        let mut manifest: Option<PieceManifest> = None;
        loop {
            let (store, blob, known) = (self.store.clone(), self.blob, manifest.clone());
            let opened = blocking(move || match known {
                Some(manifest) => store.writer(manifest),
                None => store.resume(blob),
            });
            match opened.await {
                Ok(writer) => return Ok(Some(writer)),
                Err(BlobError::Present { .. }) => return Ok(None),
                Err(BlobError::Busy { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(BUSY_POLL).await;
                }
                Err(BlobError::NotFound { .. }) if manifest.is_none() => {
                    manifest = Some(self.manifest(coordinator).await?);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The blob's manifest: from the coordinator, which has most, else from whoever is named as a parent.
    async fn manifest(&mut self, coordinator: &BlobClient) -> Result<PieceManifest, FetchError> {
        let blob = self.blob;
        if let Ok(Ok(manifest)) = timeout(MANIFEST_WITHIN, coordinator.manifest(blob)).await {
            return Ok(manifest);
        }
        let deadline = Instant::now() + PLAN_WITHIN;
        loop {
            let plan = self.plan.borrow_and_update().clone();
            for parent in plan.iter().flat_map(|plan| &plan.parents) {
                if let Some(manifest) = parent::manifest(self.pool, parent, blob, MANIFEST_WITHIN).await {
                    return Ok(manifest);
                }
            }
            let heard = tokio::time::timeout_at(deadline, self.plan.changed()).await;
            if !matches!(heard, Ok(Ok(()))) {
                return Err(match plan {
                    Some(_) => FetchError::NoHolder { blob },
                    None => FetchError::NoPlan { blob },
                });
            }
        }
    }
}

impl<F: FnMut(u64) + Send> Running<'_, F> {
    async fn run(&mut self, mut heard: mpsc::Receiver<(ParentNumber, Heard)>) -> Result<(), FetchError> {
        let mut patience = tokio::time::interval(PATIENCE_LOOK_EVERY);
        self.take_plan();
        loop {
            // Under a limit, what has come already is waited for before more is asked for.
            let paused_until = self.fetch.limit.free_at();
            if paused_until.is_none() {
                for step in self.receiver.next(self.start.elapsed()) {
                    self.take(step);
                }
            }
            if self.receiver.is_complete() && self.finish().await? {
                return Ok(());
            }
            let wake_at = self.receiver.wake_at(self.start.elapsed());
            let wake_at = self.start + wake_at.unwrap_or(Duration::from_hours(1));
            let wake_at = paused_until.unwrap_or(wake_at);
            tokio::select! {
                Some((number, event)) = heard.recv() => {
                    self.hear(number, event)?;
                    for _ in 1..EVENTS_AT_ONCE {
                        let Ok((number, event)) = heard.try_recv() else { break };
                        self.hear(number, event)?;
                    }
                }
                Ok(()) = self.fetch.plan.changed() => self.take_plan(),
                () = sleep_until(wake_at) => {}
                _ = patience.tick() => self.look_at_the_clock()?,
            }
        }
    }

    /// Takes the newest plan: who is in it no more is left, who is new is dialled.
    fn take_plan(&mut self) {
        let Some(plan) = self.fetch.plan.borrow_and_update().clone() else { return };
        let nodes: Vec<NodeId> = plan.parents.iter().map(|parent| parent.node).collect();
        let new = self.receiver.set_parents(&nodes);
        let kept: Vec<NodeId> = self.receiver.parents().collect();
        self.parents.retain(|_, parent| kept.contains(&parent.planned.node));
        let moved = |parent: &Parent| {
            plan.parents.iter().any(|planned| {
                planned.node == parent.planned.node && planned.addresses != parent.planned.addresses
            })
        };
        let moved: Vec<ParentNumber> =
            self.parents.iter().filter(|(_, parent)| moved(parent)).map(|(number, _)| *number).collect();
        let mut dialled: Vec<NodeId> = new;
        for number in moved {
            if let Some(parent) = self.parents.remove(&number) {
                self.receiver.parent_lost(parent.planned.node);
                dialled.push(parent.planned.node);
            }
        }
        for planned in plan.parents.into_iter().filter(|planned| dialled.contains(&planned.node)) {
            self.dial(planned);
        }
    }

    fn dial(&mut self, planned: PlannedParent) {
        self.last_number += 1;
        let number = self.last_number;
        let line = Line {
            number,
            parent: planned.clone(),
            writer: self.writer.clone(),
            pool: Arc::clone(self.fetch.pool),
            limit: self.fetch.limit.clone(),
            events: self.events.clone(),
        };
        let line = AbortOnDropHandle::new(tokio::spawn(line.hold()));
        self.parents.insert(number, Parent { planned, outbound: None, _line: line });
    }

    fn hear(&mut self, number: ParentNumber, heard: Heard) -> Result<(), FetchError> {
        // One that was dropped may have had something to say still.
        let Some(parent) = self.parents.get_mut(&number) else {
            return match heard {
                Heard::CannotWrite(error) => Err(error.into()),
                Heard::Piece { index, is_good: true, size_bytes, .. } => {
                    self.has(index, size_bytes);
                    Ok(())
                }
                _ => Ok(()),
            };
        };
        let node = parent.planned.node;
        match heard {
            Heard::Connected { have, outbound } => {
                parent.outbound = Some(outbound);
                self.receiver.parent_has_all(node, have);
            }
            Heard::Has(pieces) => {
                for index in pieces {
                    self.receiver.parent_has(node, index);
                }
            }
            Heard::Begins(ask, index) => self.receiver.begins(node, ask, index),
            Heard::Nothing(ask) => self.receiver.nothing(node, ask),
            Heard::Piece { ask, index, is_good, size_bytes, wire_bytes, at } => {
                let at = at.saturating_duration_since(self.start);
                self.fetch.received_bytes.fetch_add(wire_bytes, Ordering::Relaxed);
                match self.receiver.piece(node, ask, index, is_good, at) {
                    Arrival::New => self.tell_of(index, size_bytes),
                    Arrival::Duplicate => {}
                    Arrival::Refused => self.ban(number, node),
                }
            }
            Heard::Lost(why) => {
                tracing::debug!(blob = %self.fetch.blob.short(), parent = named(node), why, "lost a source");
                parent.outbound = None;
                self.receiver.parent_lost(node);
            }
            Heard::Unruly(why) => {
                tracing::warn!(blob = %self.fetch.blob.short(), parent = named(node), why, "dropped a source");
                self.parents.remove(&number);
                // Never again here; whether it is to blame is another question, so it is only replaced.
                let _banned = self.receiver.ban(node);
                self.take(Step::Report(Trouble::Stalled(node)));
            }
            Heard::CannotWrite(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// A piece came over a line that is not a parent's any more: it is written all the same.
    fn has(&mut self, index: u32, size_bytes: u64) {
        if self.receiver.found(index) {
            self.tell_of(index, size_bytes);
        }
    }

    /// A piece is here that was not.
    fn tell_of(&mut self, index: u32, size_bytes: u64) {
        self.last_piece = Instant::now();
        self.share.0.has(index);
        self.fetch.held.store(self.receiver.have().held(), Ordering::Relaxed);
        (self.on_bytes)(size_bytes);
    }

    fn ban(&mut self, number: ParentNumber, node: NodeId) {
        tracing::warn!(blob = %self.fetch.blob.short(), parent = named(node), "banned a source that sent corrupt data");
        self.parents.remove(&number);
        let step = self.receiver.ban(node);
        self.take(step);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Tell { parent, message } => self.tell(parent, &message),
            Step::Report(trouble) => {
                tracing::debug!(blob = %self.fetch.blob.short(), ?trouble, "trouble with a source");
                // Without room it is left out: stalls and hunger are said again, and a ban holds here in any case.
                let _full = self.fetch.troubles.try_send((self.fetch.blob, trouble));
            }
        }
    }

    fn tell(&mut self, node: NodeId, message: &ToParent) {
        let parent = self.parents.values_mut().find(|parent| parent.planned.node == node);
        let Some(parent) = parent else { return };
        let told = parent
            .outbound
            .as_ref()
            .is_some_and(|outbound| outbound.try_send(wire::to_parent(message)).is_ok());
        if !told && parent.outbound.take().is_some() {
            // It does not read what it is asked; the line notices the end of the stream, and opens another.
            self.receiver.parent_lost(node);
        }
    }

    /// All pieces are here: true once the blob is durable in its place.
    async fn finish(&mut self) -> Result<bool, FetchError> {
        let writer = self.writer.clone();
        match blocking(move || writer.finish()).await {
            Ok(_) => {
                self.share.1 = true;
                for outbound in self.parents.values().filter_map(|parent| parent.outbound.as_ref()) {
                    let finished = to_parent::Message::Finished(v1::Finished {});
                    // A parent that does not hear it takes this node for lost, which does no harm.
                    let _full = outbound.try_send(v1::ToParent { message: Some(finished) });
                }
                Ok(true)
            }
            Err(BlobError::Incomplete { .. }) => {
                for index in self.writer.missing() {
                    self.receiver.lost(index);
                    self.share.0.lost(index);
                }
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives up what takes too long.
    fn look_at_the_clock(&mut self) -> Result<(), FetchError> {
        let (blob, waited) = (self.fetch.blob, self.last_piece.elapsed());
        let have = self.receiver.have();
        let (missing, count) = (have.count() - have.held(), have.count());
        let now = Instant::now();
        let plan = self.fetch.plan.borrow().clone();
        let is_connected = self.parents.values().any(|parent| parent.outbound.is_some());
        let error = match plan.as_ref() {
            None if waited >= PLAN_WITHIN => FetchError::NoPlan { blob },
            Some(plan) if plan.waits == Some(Wait::NoHolder) && waited >= HOLDER_WITHIN && !is_connected => {
                FetchError::NoHolder { blob }
            }
            Some(plan) if plan.waits == Some(Wait::NoSlot) => {
                let since = *self.waits_since.get_or_insert(now);
                if now - since < SLOT_WITHIN {
                    // There is a good reason why nothing comes.
                    self.last_piece = now;
                    return Ok(());
                }
                FetchError::Stuck { blob, missing, count, waited: now - since }
            }
            Some(_) if waited >= self.piece_within() => FetchError::Stuck { blob, missing, count, waited },
            _ => {
                self.waits_since = None;
                return Ok(());
            }
        };
        Err(error)
    }

    /// How long no piece may come: under a low limit one takes its time.
    fn piece_within(&self) -> Duration {
        let piece_bytes = f64::from(self.writer.manifest().piece_bytes());
        let secs =
            self.fetch.limit.bytes_per_sec().map_or(0.0, |rate| 4.0 * piece_bytes / rate.max(1) as f64);
        PIECE_WITHIN.max(Duration::try_from_secs_f64(secs).unwrap_or(PIECE_WITHIN))
    }
}
