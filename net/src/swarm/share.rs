//! The blobs that are served here, and who is sent what of them.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hatchery_common::{
    blob::{BlobError, BlobReader, BlobStore, BlobWriter, PieceManifest, PieceSet},
    id::{BlobId, NodeId},
};
use hatchery_swarm::{AskId, AskRefused, Random, Send, Server, Wanted};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{SENDS_AHEAD, squeeze::Squeezer};
use crate::{RateLimit, blocking};

/// So many children must have had several pieces for the uplink to count as busy.
const BUSY_CHILDREN: usize = 3;
const BUSY_PIECES: u32 = 2;
/// Over how long that is counted at most.
const BUSY_WITHIN_SECS: f64 = 10.0;

/// Larger pieces are read on another thread.
const AT_HAND_BYTES_MAX: u64 = 256 << 10;

/// Below this much a second the processor squeezes faster than the link sends.
const SLOW_BYTES_PER_SEC: f64 = 12.5e6;
/// Over how long that is looked at, and after which silence it is not known any more.
const PACE_WINDOW: Duration = Duration::from_millis(200);
const PACE_FORGOTTEN_AFTER: Duration = Duration::from_secs(2);

/// All blobs that are served from one store.
#[derive(Clone, Debug)]
pub struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: BlobStore,
    limit: RateLimit,
    open: Mutex<HashMap<BlobId, Weak<Share>>>,
    sent: Mutex<Sent>,
    sent_bytes: AtomicU64,
    pace: Mutex<Pace>,
}

/// How fast bytes went out of late.
#[derive(Debug, Default)]
struct Pace {
    window: Option<(Instant, u64)>,
    is_slow: bool,
}

impl Pace {
    fn count(&mut self, bytes: u64, now: Instant) {
        let (since, before) = self.window.unwrap_or((now, 0));
        let (passed, sum) = (now - since, before + bytes);
        if passed > PACE_FORGOTTEN_AFTER {
            *self = Self { window: Some((now, bytes)), is_slow: false };
        } else if passed >= PACE_WINDOW {
            let bytes_per_sec = sum as f64 / passed.as_secs_f64();
            *self = Self { window: Some((now, 0)), is_slow: bytes_per_sec < SLOW_BYTES_PER_SEC };
        } else {
            self.window = Some((since, sum));
        }
    }
}

/// What was sent since a rate was last told.
#[derive(Debug, Default)]
struct Sent {
    since: Option<Instant>,
    bytes: u64,
    pieces: HashMap<NodeId, u32>,
}

impl Sent {
    fn count(&mut self, child: NodeId, bytes: u64, now: Instant) {
        self.since.get_or_insert(now);
        self.bytes += bytes;
        *self.pieces.entry(child).or_default() += 1;
    }

    fn rate(&mut self, now: Instant) -> Option<f64> {
        let secs = (now - self.since?).as_secs_f64();
        let busy = self.pieces.values().filter(|pieces| **pieces >= BUSY_PIECES).count();
        let is_busy = busy >= BUSY_CHILDREN && secs > 0.0;
        let rate = self.bytes as f64 / secs;
        // A window that has ended without work enough tells nothing; otherwise large pieces on a slow link add up.
        if is_busy || secs >= BUSY_WITHIN_SECS {
            *self = Self { since: Some(now), ..Self::default() };
        }
        is_busy.then_some(rate)
    }
}

impl Shares {
    /// Serves the blobs of `store`, to all children together no faster than `limit`.
    pub fn new(store: BlobStore, limit: RateLimit) -> Self {
        let (open, sent) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner {
            store,
            limit,
            open,
            sent,
            sent_bytes: AtomicU64::new(0),
            pace: Mutex::default(),
        }))
    }

    /// The blobs that are here as a whole and go from node to node, in order.
    pub fn whole(&self) -> Vec<BlobId> {
        let large = |blob: &hatchery_common::blob::BlobInfo| blob.size_bytes >= super::SWARM_SIZE_BYTES_MIN;
        self.0.store.list().into_iter().filter(large).map(|blob| blob.id).collect()
    }

    /// The limit on what is sent.
    pub fn limit(&self) -> &RateLimit {
        &self.0.limit
    }

    /// Bytes a second that the link upwards carries, measured since it was last told. Nothing until so many children had
    /// so many pieces meanwhile that the link was busy.
    pub fn up_bytes_per_sec(&self) -> Option<f64> {
        lock(&self.0.sent).rate(Instant::now())
    }

    /// Whether bytes go out so slowly that it pays to send fewer of them.
    pub(super) fn is_slow(&self) -> bool {
        lock(&self.0.pace).is_slow
    }

    /// Bytes of pieces that were sent to others so far.
    pub fn sent_bytes(&self) -> u64 {
        self.0.sent_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn count_sent(&self, child: NodeId, bytes: u64) {
        self.0.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.0.pace).count(bytes, Instant::now());
        lock(&self.0.sent).count(child, bytes, Instant::now());
    }

    /// What is here of a blob.
    pub(super) async fn open(&self, blob: BlobId) -> Result<Arc<Share>, BlobError> {
        if let Some(share) = self.find(blob) {
            return Ok(share);
        }
        let store = self.0.store.clone();
        let reader = blocking(move || store.reader(blob)).await?;
        let mut open = lock(&self.0.open);
        // Another child may have been quicker.
        if let Some(share) = open.get(&blob).and_then(Weak::upgrade).filter(|share| !share.is_closed()) {
            return Ok(share);
        }
        let have = PieceSet::full(reader.manifest().piece_count());
        let share = Arc::new(Share::new(Pieces::Whole(reader), have));
        open.retain(|_, share| share.strong_count() > 0);
        open.insert(blob, Arc::downgrade(&share));
        Ok(share)
    }

    /// Serves a blob while it comes.
    pub(super) fn grow(&self, writer: Held) -> Arc<Share> {
        let (blob, have) = (writer.id(), writer.have());
        let share = Arc::new(Share::new(Pieces::Growing(writer), have));
        let mut open = lock(&self.0.open);
        open.retain(|_, share| share.strong_count() > 0);
        if let Some(older) = open.insert(blob, Arc::downgrade(&share)).and_then(|older| older.upgrade()) {
            older.close();
        }
        share
    }

    fn find(&self, blob: BlobId) -> Option<Arc<Share>> {
        lock(&self.0.open).get(&blob)?.upgrade().filter(|share| !share.is_closed())
    }
}

/// One blob that is served.
#[derive(Debug)]
pub(super) struct Share {
    pieces: Pieces,
    squeezer: Squeezer,
    state: Mutex<State>,
    /// Changes whenever there is one more piece.
    grew: watch::Sender<()>,
    closed: CancellationToken,
}

/// Where pieces are read.
#[derive(Debug)]
enum Pieces {
    Whole(BlobReader),
    Growing(Held),
}

/// A writer that several use. The last one to let go of it has the disk waited for on another thread.
#[derive(Clone, Debug)]
pub(super) struct Held(Option<Arc<BlobWriter>>);

impl Held {
    pub(super) fn new(writer: BlobWriter) -> Self {
        Self(Some(Arc::new(writer)))
    }
}

impl Deref for Held {
    type Target = BlobWriter;

    fn deref(&self) -> &BlobWriter {
        self.0.as_ref().expect("a writer is taken only when it is let go")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(writer) = self.0.take().and_then(Arc::into_inner)
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(writer));
        }
    }
}

#[derive(Debug)]
struct State {
    server: Server,
    children: HashMap<NodeId, (u64, mpsc::Sender<Turn>)>,
    last_number: u64,
}

/// What is to be sent to a child.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    Piece(AskId, u32),
    Nothing(AskId),
}

/// A child's stream. Dropped without [`Child::finished`], the child counts as lost.
#[derive(Debug)]
pub(super) struct Child {
    share: Arc<Share>,
    node: NodeId,
    number: u64,
}

impl Share {
    fn new(pieces: Pieces, have: PieceSet) -> Self {
        let random = Random::new(RandomState::new().build_hasher().finish());
        let server = Server::new(have, random);
        let state = Mutex::new(State { server, children: HashMap::new(), last_number: 0 });
        let squeezer = Squeezer::default();
        Self { pieces, squeezer, state, grew: watch::Sender::new(()), closed: CancellationToken::new() }
    }

    pub(super) fn manifest(&self) -> &PieceManifest {
        match &self.pieces {
            Pieces::Whole(reader) => reader.manifest(),
            Pieces::Growing(writer) => writer.manifest(),
        }
    }

    /// A piece that is small, and came so lately that the system has it in memory: nothing is waited for.
    pub(super) fn at_hand(&self, index: u32) -> Option<Vec<u8>> {
        let Pieces::Growing(writer) = &self.pieces else { return None };
        let range = writer.manifest().piece_range(index)?;
        (range.end - range.start <= AT_HAND_BYTES_MAX).then(|| writer.read_unsaved(index))?
    }

    /// Reads a piece and checks it; none if it is not here after all.
    pub(super) fn read(&self, index: u32) -> Result<Option<Vec<u8>>, BlobError> {
        match &self.pieces {
            Pieces::Whole(reader) => reader.read_piece(index).map(Some),
            Pieces::Growing(writer) => writer.read_piece(index),
        }
    }

    /// Whether [`Share::squeeze`] may save something of the next piece.
    pub(super) fn is_worth_squeezing(&self) -> bool {
        self.squeezer.is_worth_trying()
    }

    /// The same bytes with fewer of them, and the width that says how; none if that does not save enough.
    pub(super) fn squeeze(&self, piece: &[u8]) -> Option<(u32, Vec<u8>)> {
        self.squeezer.squeeze(piece)
    }

    /// What is here.
    pub(super) fn have(&self) -> PieceSet {
        self.state().server.have().clone()
    }

    /// Hears of new pieces.
    pub(super) fn grew(&self) -> watch::Receiver<()> {
        self.grew.subscribe()
    }

    /// A piece is here and checked.
    pub(super) fn has(&self, index: u32) {
        if self.state().server.has(index) {
            self.grew.send_replace(());
        }
    }

    /// A piece is not here any more.
    pub(super) fn lost(&self, index: u32) {
        self.state().server.lost(index);
    }

    /// Ends all streams: what was on its way comes no further.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// A child has opened a stream; an older one of the same child is over.
    pub(super) fn child(self: &Arc<Self>, node: NodeId) -> (Child, mpsc::Receiver<Turn>) {
        let (sender, turns) = mpsc::channel(SENDS_AHEAD);
        let mut state = self.state();
        state.last_number += 1;
        let number = state.last_number;
        state.server.child_came(node);
        // The older stream's turns end with its sender.
        state.children.insert(node, (number, sender));
        (Child { share: Arc::clone(self), node, number }, turns)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Gives every child its turn that may have one.
    fn go_on(&mut self) {
        while let Some(send) = self.server.next_send() {
            let (child, turn) = match send {
                Send::Piece { child, ask, index } => (child, Turn::Piece(ask, index)),
                Send::Nothing { child, ask } => (child, Turn::Nothing(ask)),
            };
            let sent = self.children.get(&child).is_some_and(|(_, turns)| turns.try_send(turn).is_ok());
            if !sent {
                // Its stream has ended, or it lets more turns pile up than it may have asks open.
                self.children.remove(&child);
                self.server.child_left(child);
            }
        }
    }
}

impl Child {
    pub(super) fn share(&self) -> &Arc<Share> {
        &self.share
    }

    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    pub(super) fn asked(&self, ask: AskId, wanted: Wanted) -> Result<(), AskRefused> {
        let mut state = self.share.state();
        if !self.is_current(&state) {
            return Err(AskRefused::NotAChild);
        }
        state.server.asked(self.node, ask, wanted)?;
        state.go_on();
        Ok(())
    }

    pub(super) fn cancelled(&self, ask: AskId) {
        let mut state = self.share.state();
        if self.is_current(&state) {
            state.server.cancelled(self.node, ask);
        }
    }

    /// A piece is on its way to the child.
    pub(super) fn sent(&self) {
        let mut state = self.share.state();
        if self.is_current(&state) {
            state.server.sent(self.node);
            state.go_on();
        }
    }

    /// The child has the whole blob.
    pub(super) fn finished(&self) {
        let mut state = self.share.state();
        if self.is_current(&state) {
            state.server.child_finished(self.node);
            state.children.remove(&self.node);
            state.go_on();
        }
    }

    fn is_current(&self, state: &State) -> bool {
        state.children.get(&self.node).is_some_and(|(number, _)| *number == self.number)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let mut state = self.share.state();
        if self.is_current(&state) {
            state.server.child_left(self.node);
            state.children.remove(&self.node);
            state.go_on();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is held under these locks changes in single steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
