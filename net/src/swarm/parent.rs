//! A parent, as the shell sees it: a stream that is opened again for as long as the plan names the parent.

use std::{sync::Arc, time::Duration};

use hatchery_common::{
    blob::{BlobError, PieceManifest, PieceSet},
    id::{BlobId, NodeId},
    swarm::PlannedParent,
};
use hatchery_proto::{
    services::BULK_MESSAGE_BYTES_MAX,
    v1::{self, peers_client::PeersClient, to_child, to_parent},
};
use hatchery_swarm::AskId;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{
    HAVE_WITHIN, REDIAL_FIRST, REDIAL_LONGEST, TO_PARENT_AHEAD, pool::Pool, share::Held, squeeze, wire,
};
use crate::{RateLimit, blocking};

/// What is heard of a parent.
#[derive(Debug)]
pub(super) enum Heard {
    /// A stream stands.
    Connected {
        have: PieceSet,
        outbound: mpsc::Sender<v1::ToParent>,
    },
    /// It has these pieces too.
    Has(Vec<u32>),
    Begins(AskId, u32),
    Nothing(AskId),
    /// A piece has come, and was checked; if it is good, it is written.
    Piece {
        ask: AskId,
        index: u32,
        is_good: bool,
        size_bytes: u64,
        wire_bytes: u64,
        at: Instant,
    },
    /// The stream is over; another one is opened.
    Lost(String),
    /// It does not keep to the protocol.
    Unruly(String),
    /// A piece cannot be written here.
    CannotWrite(BlobError),
}

/// Which parent's stream an event belongs to: a parent that was dropped and taken again is another one.
pub(super) type ParentNumber = u64;

/// All that a stream to a parent needs.
pub(super) struct Line {
    pub(super) number: ParentNumber,
    pub(super) parent: PlannedParent,
    pub(super) writer: Held,
    pub(super) pool: Arc<Pool>,
    pub(super) limit: RateLimit,
    pub(super) events: mpsc::Sender<(ParentNumber, Heard)>,
}

/// Why a stream ended.
enum End {
    /// Nobody listens any more.
    Over,
    Lost(String),
    Unruly(String),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
                Self::Unruly(status.to_string())
            }
            _ => Self::Lost(status.to_string()),
        }
    }
}

impl Line {
    /// Holds streams to the parent, one after the other.
    pub(super) async fn hold(self) {
        let mut pause = REDIAL_FIRST;
        loop {
            let opened_at = Instant::now();
            let ended = match self.stream().await {
                Ok(never) => match never {},
                Err(End::Over) => return,
                Err(End::Unruly(why)) => {
                    // Whoever reads it drops this line.
                    let _over = self.events.send((self.number, Heard::Unruly(why))).await;
                    return;
                }
                Err(End::Lost(why)) => why,
            };
            if opened_at.elapsed() > REDIAL_LONGEST {
                pause = REDIAL_FIRST;
            }
            if self.events.send((self.number, Heard::Lost(ended))).await.is_err() {
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(REDIAL_LONGEST);
        }
    }

    async fn stream(&self) -> Result<std::convert::Infallible, End> {
        let node = self.parent.node;
        let channel = self.pool.channel(&self.parent).await.map_err(|error| End::Lost(error.to_string()))?;
        let opened = open(channel, self.writer.id(), false).await;
        let (outbound, have, mut inbound) = match opened {
            Ok(opened) => opened,
            Err(status) => {
                if status.code() == Code::Unavailable {
                    self.pool.forget(node);
                }
                return Err(status.into());
            }
        };
        let count = self.writer.manifest().piece_count();
        if have.count != count {
            return Err(End::Unruly(format!("its blob has {} pieces instead of {count}", have.count)));
        }
        let have = wire::pieces("have.pieces", count, &have.pieces)
            .map_err(|error| End::Unruly(error.to_string()))?;
        self.tell(Heard::Connected { have, outbound }).await?;
        loop {
            let message = inbound.message().await?;
            let Some(message) = message else { return Err(End::Lost("it ended the stream".to_owned())) };
            match message.message {
                Some(to_child::Message::Piece(piece)) => self.take(piece).await?,
                Some(to_child::Message::Has(v1::Has { pieces })) => {
                    if let Some(beyond) = pieces.iter().find(|index| **index >= count) {
                        return Err(End::Unruly(format!("it claims to have piece {beyond} of {count}")));
                    }
                    self.tell(Heard::Has(pieces)).await?;
                }
                Some(to_child::Message::Begins(v1::Begins { ask, piece })) => {
                    self.tell(Heard::Begins(AskId(ask), piece)).await?;
                }
                Some(to_child::Message::Nothing(v1::Nothing { ask })) => {
                    self.tell(Heard::Nothing(AskId(ask))).await?;
                }
                Some(to_child::Message::Have(_)) => {
                    return Err(End::Unruly("it announced its pieces twice".to_owned()));
                }
                // A kind that this version does not know.
                None => {}
            }
        }
    }

    /// Checks a piece and writes it.
    async fn take(&self, piece: v1::SwarmPiece) -> Result<(), End> {
        let v1::SwarmPiece { ask, index, bytes, squeezed_width } = piece;
        let (at, wire_bytes) = (Instant::now(), bytes.len() as u64);
        self.limit.charge(wire_bytes);
        let writer = self.writer.clone();
        let size_bytes = writer.manifest().piece_range(index).map_or(0, |range| range.end - range.start);
        let written = blocking(move || {
            if squeezed_width == 0 {
                return writer.write_piece(index, &bytes).map(|_| true);
            }
            match squeeze::expand(&bytes, squeezed_width, size_bytes) {
                Some(bytes) => writer.write_piece(index, &bytes).map(|_| true),
                None => Ok(false),
            }
        });
        let is_good = match written.await {
            Ok(is_good) => is_good,
            Err(BlobError::WrongPiece { .. }) => false,
            Err(error) => return self.tell(Heard::CannotWrite(error)).await,
        };
        self.tell(Heard::Piece { ask: AskId(ask), index, is_good, size_bytes, wire_bytes, at }).await
    }

    async fn tell(&self, heard: Heard) -> Result<(), End> {
        self.events.send((self.number, heard)).await.map_err(|_| End::Over)
    }
}

type Opened = (mpsc::Sender<v1::ToParent>, v1::Have, Streaming<v1::ToChild>);

/// Opens a stream and hears what there is.
async fn open(
    channel: tonic::transport::Channel,
    blob: BlobId,
    with_manifest: bool,
) -> Result<Opened, Status> {
    let mut client = PeersClient::new(channel)
        .max_decoding_message_size(BULK_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(BULK_MESSAGE_BYTES_MAX);
    let (outbound, requests) = mpsc::channel(TO_PARENT_AHEAD);
    let first =
        to_parent::Message::Open(v1::Open { blob: blob.to_string(), with_manifest, takes_squeezed: true });
    // There is room: nothing else was sent yet.
    let _first = outbound.try_send(v1::ToParent { message: Some(first) });
    let opened = async {
        let mut inbound = client.fetch(ReceiverStream::new(requests)).await?.into_inner();
        match inbound.message().await?.and_then(|message| message.message) {
            Some(to_child::Message::Have(have)) => Ok((outbound, have, inbound)),
            Some(_) => Err(Status::invalid_argument("it did not begin with its pieces")),
            None => Err(Status::unavailable("it ended the stream")),
        }
    };
    let late = |_| Status::deadline_exceeded("it did not announce its pieces in time");
    timeout(HAVE_WITHIN, opened).await.map_err(late)?
}

/// Asks a parent for a blob's manifest, and for nothing else.
pub(super) async fn manifest(
    pool: &Pool,
    parent: &PlannedParent,
    blob: BlobId,
    within: Duration,
) -> Option<PieceManifest> {
    let asked = async {
        let channel = pool.channel(parent).await.ok()?;
        let (_, have, _) = open(channel, blob, true).await.ok()?;
        let manifest = PieceManifest::decode(&have.manifest?).ok()?;
        (manifest.id() == blob).then_some(manifest)
    };
    timeout(within, asked).await.ok().flatten()
}

/// Who a parent is, for messages.
pub(super) fn named(node: NodeId) -> String {
    if node == hatchery_common::swarm::COORDINATOR { "the coordinator".to_owned() } else { node.short() }
}
