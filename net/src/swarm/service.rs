//! The service: a stream for each child and blob.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use hatchery_common::{
    faults,
    field::FieldError,
    id::{BlobId, CertificateId, NodeId},
    swarm::COORDINATOR,
    tls::Role,
};
use hatchery_proto::{
    services::invalid,
    v1::{self, peers_server::Peers, to_child, to_parent},
};
use hatchery_swarm::AskId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    ASK_WITHIN, CHILDREN_STREAMS_MAX, OPEN_WITHIN, STREAMS_OF_A_NODE_MAX, Shares, TELLING_SPACING,
    TO_CHILD_AHEAD,
    share::{Child, Turn},
    wire,
};
use crate::{blocking, transfer::status_of, transport::Peer};

/// Serves pieces to the nodes of the fleet.
#[derive(Clone, Debug)]
pub struct PeerService {
    shares: Shares,
    streams: Arc<Semaphore>,
    /// How many of them each node has.
    of_nodes: Arc<Mutex<HashMap<NodeId, usize>>>,
    /// Certificates that are good for nothing any more.
    revoked: Arc<watch::Sender<HashSet<CertificateId>>>,
}

type Outbound = mpsc::Sender<Result<v1::ToChild, Status>>;

impl PeerService {
    /// Serves these blobs.
    pub fn new(shares: Shares) -> Self {
        let streams = Arc::new(Semaphore::new(CHILDREN_STREAMS_MAX));
        Self { shares, streams, of_nodes: Arc::default(), revoked: Arc::new(watch::Sender::default()) }
    }

    /// The blobs that are served.
    pub fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Whose certificates are good for nothing, from now on.
    pub fn revoke(&self, certificates: impl IntoIterator<Item = CertificateId>) {
        self.revoked.send_replace(certificates.into_iter().collect());
    }

    /// Which node calls, and with which certificate. Only nodes of this fleet are served, and the coordinator.
    fn caller<T>(&self, request: &Request<T>) -> Result<(NodeId, CertificateId), Status> {
        let identity = request.extensions().get::<Peer>().and_then(|peer| peer.identity.as_ref());
        let identity =
            identity.ok_or_else(|| Status::unauthenticated("only nodes of this fleet may fetch pieces"))?;
        let certificate = identity.certificate;
        if self.revoked.borrow().contains(&certificate) {
            return Err(was_revoked());
        }
        match identity.role {
            Role::Agent(node) => Ok((node, certificate)),
            Role::Coordinator => Ok((COORDINATOR, certificate)),
            Role::Operator(_) | Role::Viewer(_) => Err(Status::permission_denied(
                "only nodes may fetch pieces; people fetch blobs with `Blobs.Get`",
            )),
        }
    }
}

#[tonic::async_trait]
impl Peers for PeerService {
    type FetchStream = ReceiverStream<Result<v1::ToChild, Status>>;

    async fn fetch(
        &self,
        request: Request<Streaming<v1::ToParent>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let (node, certificate) = self.caller(&request)?;
        let full = |_| Status::resource_exhausted("this node already serves as many peers as it can");
        let place = Arc::clone(&self.streams).try_acquire_owned().map_err(full)?;
        let own_place = OwnPlace::take(&self.of_nodes, node)?;
        let mut revoked = self.revoked.subscribe();
        let (outbound, receiver) = mpsc::channel(TO_CHILD_AHEAD);
        let shares = self.shares.clone();
        tokio::spawn(async move {
            let outbound_too = outbound.clone();
            let served = Serving {
                shares,
                node,
                outbound: outbound_too,
                takes_squeezed: false,
                _place: (place, own_place),
            };
            let ended = tokio::select! {
                ended = served.run(request.into_inner()) => ended,
                // The sender goes with the service.
                _ = revoked.wait_for(|revoked| revoked.contains(&certificate)) => Err(was_revoked()),
            };
            if let Err(status) = ended {
                tracing::debug!(%node, %status, "stopped serving a peer");
                // An error here says that the child is gone and wants no answer.
                let _ = outbound.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// One stream.
struct Serving {
    shares: Shares,
    node: NodeId,
    outbound: Outbound,
    /// Whether the child takes squeezed pieces.
    takes_squeezed: bool,
    _place: (OwnedSemaphorePermit, OwnPlace),
}

/// One of the streams that a node may have.
struct OwnPlace {
    of_nodes: Arc<Mutex<HashMap<NodeId, usize>>>,
    node: NodeId,
}

impl OwnPlace {
    fn take(of_nodes: &Arc<Mutex<HashMap<NodeId, usize>>>, node: NodeId) -> Result<Self, Status> {
        let mut streams = of_nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let own = streams.entry(node).or_default();
        if *own >= STREAMS_OF_A_NODE_MAX {
            let problem = format!("this node already has {STREAMS_OF_A_NODE_MAX} open streams here");
            return Err(Status::resource_exhausted(problem));
        }
        *own += 1;
        Ok(Self { of_nodes: Arc::clone(of_nodes), node })
    }
}

impl Drop for OwnPlace {
    fn drop(&mut self) {
        let mut streams = self.of_nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = streams.get_mut(&self.node) {
            *own -= 1;
            if *own == 0 {
                streams.remove(&self.node);
            }
        }
    }
}

fn was_revoked() -> Status {
    Status::unauthenticated("this certificate was revoked; join again with a new join string")
}

impl Serving {
    async fn run(mut self, mut inbound: Streaming<v1::ToParent>) -> Result<(), Status> {
        let first = timeout(OPEN_WITHIN, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Open arrived; a stream begins with Open"))??;
        let Some(to_parent::Message::Open(open)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("a stream begins with Open"));
        };
        let blob: BlobId = open
            .blob
            .parse()
            .map_err(|error: FieldError| invalid(FieldError::new("open.blob", error.problem)))?;
        self.takes_squeezed = open.takes_squeezed;
        let share = self.shares.open(blob).await.map_err(|error| status_of(&error))?;
        let (child, turns) = share.child(self.node);
        let grew = share.grew();
        let told = share.have();
        let have = v1::Have {
            manifest: open.with_manifest.then(|| share.manifest().encode()),
            pieces: told.to_bytes(),
            count: told.count(),
        };
        self.say(to_child::Message::Have(have)).await?;
        tokio::select! {
            ended = hear(&child, inbound) => ended,
            ended = self.speak(&child, turns, grew, told) => ended,
            () = share.closed() => Err(Status::aborted("the transfer of this blob was stopped here")),
        }
    }

    /// Sends what there is to send, and tells of new pieces.
    async fn speak(
        &self,
        child: &Child,
        mut turns: mpsc::Receiver<Turn>,
        mut grew: watch::Receiver<()>,
        mut told: hatchery_common::blob::PieceSet,
    ) -> Result<(), Status> {
        let mut next_telling = Instant::now();
        loop {
            tokio::select! {
                biased;
                // What comes in quick succession is told together: a message for each would cost more than the pieces do.
                pieces = async {
                    sleep_until(next_telling).await;
                    // The sender lives as long as the share, which this stream holds.
                    let _grew = grew.changed().await;
                    let have = child.share().have();
                    let pieces: Vec<u32> = have.difference(&told).indexes().collect();
                    told = have;
                    pieces
                } => {
                    if !pieces.is_empty() {
                        self.say(to_child::Message::Has(v1::Has { pieces })).await?;
                    }
                    next_telling = Instant::now() + TELLING_SPACING;
                }
                turn = turns.recv() => match turn {
                    Some(Turn::Piece(ask, index)) => self.send_piece(child, ask, index).await?,
                    Some(Turn::Nothing(AskId(ask))) => {
                        self.say(to_child::Message::Nothing(v1::Nothing { ask })).await?;
                    }
                    None => return Err(Status::aborted("replaced by a newer stream of this node")),
                },
            }
        }
    }

    async fn send_piece(&self, child: &Child, AskId(ask): AskId, index: u32) -> Result<(), Status> {
        let share = Arc::clone(child.share());
        let may_squeeze = self.takes_squeezed && self.shares.is_slow() && share.is_worth_squeezing();
        let at_hand = if may_squeeze { None } else { share.at_hand(index) };
        let read = move || {
            let bytes = share.read(index)?;
            let squeezed = bytes.as_ref().filter(|_| may_squeeze).and_then(|bytes| share.squeeze(bytes));
            Ok(match squeezed {
                Some((width, bytes)) => Some((width, bytes)),
                None => bytes.map(|bytes| (0, bytes)),
            })
        };
        // Another thread would take longer to hear of it than this takes.
        let read = match at_hand {
            Some(bytes) => Ok(Some((0, bytes))),
            None => blocking(read).await,
        };
        let (squeezed_width, mut bytes) = match read {
            Ok(Some(read)) => read,
            Ok(None) => {
                child.share().lost(index);
                return Err(Status::data_loss(format!("piece {index} is damaged on this disk")));
            }
            Err(error) => {
                child.share().close();
                return Err(status_of(&error));
            }
        };
        // Tests let a node send what is not right: nobody may take it for right.
        if faults::strikes("peers::flips_a_bit")
            && let Some(byte) = bytes.first_mut()
        {
            *byte ^= 1;
        }
        self.say(to_child::Message::Begins(v1::Begins { ask, piece: index })).await?;
        let size_bytes = bytes.len() as u64;
        self.shares.limit().take(size_bytes).await;
        let piece = v1::SwarmPiece { ask, index, bytes: bytes.into(), squeezed_width };
        self.say(to_child::Message::Piece(piece)).await?;
        self.shares.count_sent(child.node(), size_bytes);
        child.sent();
        Ok(())
    }

    async fn say(&self, message: to_child::Message) -> Result<(), Status> {
        let sent = self.outbound.send(Ok(wire::to_child(message))).await;
        sent.map_err(|_| Status::cancelled("the peer has disconnected"))
    }
}

/// Hears what a child asks for, until it has all or leaves.
async fn hear(child: &Child, mut inbound: Streaming<v1::ToParent>) -> Result<(), Status> {
    let count = child.share().manifest().piece_count();
    loop {
        let idle = |_| Status::deadline_exceeded("the peer sent no request for too long");
        let Some(message) = timeout(ASK_WITHIN, inbound.message()).await.map_err(idle)?? else {
            return Err(Status::cancelled("the peer has disconnected"));
        };
        match message.message {
            Some(to_parent::Message::Ask(ask)) => {
                let wanted = wire::wanted(count, ask.wanted).map_err(invalid)?;
                let refused = |refused| Status::failed_precondition(format!("request refused: {refused:?}"));
                child.asked(AskId(ask.ask), wanted).map_err(refused)?;
            }
            Some(to_parent::Message::Cancel(cancel)) => child.cancelled(AskId(cancel.ask)),
            Some(to_parent::Message::Finished(_)) => {
                child.finished();
                return Ok(());
            }
            Some(to_parent::Message::Open(_)) => {
                return Err(Status::invalid_argument("Open must come only once"));
            }
            // A kind that this version does not know.
            None => {}
        }
    }
}
