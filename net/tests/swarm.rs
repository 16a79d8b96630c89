//! Blobs from node to node over real TLS connections, by the plans of a real tracker.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use hatchery_common::{
    blob::{BlobLimits, BlobStore, PieceManifest, PieceSet},
    id::{BlobId, NodeId},
    swarm::{COORDINATOR, FetchPlan, PlannedParent, Trouble},
    tls::{Identity, Role},
};
use hatchery_net::{
    Connect, RateLimit,
    swarm::{Exchange, FetchError, PeerService, Shares},
    transfer::{BlobClient, BlobService},
    transport::{Profile, Tcp, connect_to},
};
use hatchery_proto::{
    services::{self, BULK_MESSAGE_BYTES_MAX},
    v1::{self, peers_client::PeersClient, peers_server::Peers, to_child, to_parent},
};
use hatchery_swarm::{Random, Reach, Tracker};
use support::server::{Server, credentials, credentials_of};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};

const PIECE: usize = 64 << 10;

fn bytes_of(size: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..size).map(|_| random.draw() as u8).collect()
}

fn new_store() -> (TempDir, BlobStore) {
    let folder = tempfile::tempdir().unwrap();
    let limits = BlobLimits { quota_bytes: None, free_bytes_min: 0 };
    let store = BlobStore::open(folder.path(), limits).unwrap();
    (folder, store)
}

/// A tracker, and where it hears and tells.
#[derive(Clone)]
struct Fleet(Arc<Mutex<Known>>);

struct Known {
    tracker: Tracker,
    exchanges: BTreeMap<NodeId, (Exchange, SocketAddr)>,
    troubles: Vec<(NodeId, Trouble)>,
}

impl Fleet {
    fn new() -> Self {
        let tracker = Tracker::new(Random::new(7));
        Self(Arc::new(Mutex::new(Known { tracker, exchanges: BTreeMap::new(), troubles: Vec::new() })))
    }

    /// Does something to the tracker, and passes its plans on.
    fn with(&self, change: impl FnOnce(&mut Tracker)) {
        let mut known = self.0.lock().unwrap();
        change(&mut known.tracker);
        let plans = known.tracker.take_plans();
        for plan in plans {
            let parents = plan.parents.iter().map(|(node, _)| PlannedParent {
                node: *node,
                addresses: known.exchanges.get(node).iter().map(|(_, address)| address.to_string()).collect(),
            });
            let told = FetchPlan { blob: plan.blob, parents: parents.collect(), waits: plan.waits };
            if let Some((exchange, _)) = known.exchanges.get(&plan.receiver) {
                exchange.plan(told);
            }
        }
    }

    fn troubles(&self) -> Vec<(NodeId, Trouble)> {
        self.0.lock().unwrap().troubles.clone()
    }
}

/// One node: a store, its server, what it fetches.
struct Node {
    id: NodeId,
    fleet: Fleet,
    folder: TempDir,
    store: BlobStore,
    shares: Shares,
    service: PeerService,
    exchange: Exchange,
    identity: Identity,
    coordinator: BlobClient,
    server: Option<Server>,
    _told: AbortOnDropHandle<()>,
}

impl Node {
    async fn start(fleet: &Fleet, coordinator: SocketAddr) -> Self {
        let id = NodeId::random();
        let (folder, store) = new_store();
        let shares = Shares::new(store.clone(), RateLimit::new(None));
        let service = PeerService::new(shares.clone());
        let server = Server::start_as(id, Routes::new(services::peers(service.clone()))).await;
        let identity = Identity::new(Role::Agent(id));
        let (_, known) = watch::channel(credentials_of(&identity, coordinator));
        let (troubles, mut told) = mpsc::channel(16);
        let exchange = Exchange::new(store.clone(), shares.clone(), Arc::new(Tcp), known, troubles);
        fleet.0.lock().unwrap().exchanges.insert(id, (exchange.clone(), server.address));
        fleet.with(|tracker| tracker.node_came(id, Reach { can_be_dialled: true, children_max: None }));
        let telling = fleet.clone();
        let told = tokio::spawn(async move {
            while let Some((blob, trouble)) = told.recv().await {
                telling.0.lock().unwrap().troubles.push((id, trouble));
                telling.with(|tracker| tracker.trouble(blob, id, trouble));
            }
        });
        let coordinator = BlobClient::connect(&credentials(coordinator)).await.unwrap();
        Self {
            id,
            fleet: fleet.clone(),
            folder,
            store,
            shares,
            service,
            exchange,
            identity,
            coordinator,
            server: Some(server),
            _told: AbortOnDropHandle::new(told),
        }
    }

    fn holds(&self, blob: BlobId) {
        self.fleet.with(|tracker| tracker.has_all(blob, self.id));
    }

    async fn fetch(&self, blob: BlobId, size_bytes: u64) -> Result<u64, FetchError> {
        self.fleet.with(|tracker| tracker.wants(blob, self.id, 0));
        let mut here = 0;
        let limit = RateLimit::new(None);
        let fetched = self.exchange.fetch(blob, size_bytes, &self.coordinator, limit, |more| {
            here += more;
            // The plan may have come before the fetch had begun.
            self.fleet.with(|_| ());
        });
        let nudged = async {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                // As a session does when it begins anew: the plan as it is now.
                let mut known = self.fleet.0.lock().unwrap();
                let plan = known.tracker.plan(blob, self.id);
                let Some(plan) = plan else { continue };
                let parents = plan.parents.iter().map(|(node, _)| PlannedParent {
                    node: *node,
                    addresses: known.exchanges.get(node).iter().map(|(_, at)| at.to_string()).collect(),
                });
                let told = FetchPlan { blob, parents: parents.collect(), waits: plan.waits };
                known.exchanges.get_mut(&self.id).unwrap().0.plan(told);
            }
        };
        let fetched = tokio::select! {
            fetched = fetched => fetched,
            () = nudged => unreachable!("it goes on for ever"),
        };
        fetched?;
        self.holds(blob);
        Ok(here)
    }

    fn read(&self, blob: BlobId) -> Vec<u8> {
        fs::read(self.store.verified_path(blob).unwrap()).unwrap()
    }
}

/// A coordinator that has a blob's manifest to give only if it holds the blob.
async fn coordinator() -> (TempDir, BlobStore, Server) {
    let (folder, store) = new_store();
    let shares = Shares::new(store.clone(), RateLimit::new(None));
    let routes = Routes::new(services::blobs(BlobService::new(store.clone())))
        .add_service(services::peers(PeerService::new(shares)));
    (folder, store, Server::start(routes).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_nodes_get_a_blob_that_leaves_its_source_about_once() {
    let (_folder, _, coordinator) = coordinator().await;
    let fleet = Fleet::new();
    let source = Node::start(&fleet, coordinator.address).await;
    let bytes = bytes_of(100 * PIECE + 17, 1);
    let blob = source.store.put_bytes(&bytes).unwrap();
    source.holds(blob);
    let mut nodes = Vec::new();
    for _ in 0..8 {
        nodes.push(Node::start(&fleet, coordinator.address).await);
    }
    // Without a limit, loopback has no uplink that would be worth sparing.
    for node in nodes.iter().chain([&source]) {
        node.shares.limit().set(Some(50 * PIECE as u64));
    }
    let size = bytes.len() as u64;
    let fetched = futures::future::join_all(nodes.iter().map(|node| node.fetch(blob, size))).await;
    for (node, here) in nodes.iter().zip(fetched) {
        assert_eq!(here.unwrap(), size);
        assert!(node.read(blob) == bytes);
        assert!(node.store.partials().is_empty() && node.exchange.wants().is_empty());
    }
    let sent = source.shares.sent_bytes();
    assert!((size..size * 3 / 2).contains(&sent), "it was sent {:.2} times", sent as f64 / size as f64);
    assert!(fleet.troubles().iter().all(|(_, trouble)| !matches!(trouble, Trouble::Wrong(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_fetch_has_left_is_gone_on_with_and_served() {
    let (_folder, _, coordinator) = coordinator().await;
    let fleet = Fleet::new();
    let source = Node::start(&fleet, coordinator.address).await;
    let bytes = bytes_of(40 * PIECE, 2);
    let blob = source.store.put_bytes(&bytes).unwrap();
    source.holds(blob);
    let (first, second) =
        (Node::start(&fleet, coordinator.address).await, Node::start(&fleet, coordinator.address).await);
    let size = bytes.len() as u64;
    // So slow that it is interrupted in the middle.
    source.shares.limit().set(Some(10 * PIECE as u64));
    let half = tokio::time::timeout(Duration::from_millis(900), first.fetch(blob, size)).await;
    assert!(half.is_err(), "it was to be interrupted");
    source.shares.limit().set(None);
    let kept = first.store.partials();
    assert_eq!(kept.len(), 1);
    let (one, other) = tokio::join!(first.fetch(blob, size), second.fetch(blob, size));
    assert_eq!((one.unwrap(), other.unwrap()), (size, size));
    assert!(first.read(blob) == bytes && second.read(blob) == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_may_die_once_its_pieces_are_out() {
    let (_folder, _, coordinator) = coordinator().await;
    let fleet = Fleet::new();
    let mut source = Node::start(&fleet, coordinator.address).await;
    let bytes = bytes_of(64 * PIECE, 3);
    let blob = source.store.put_bytes(&bytes).unwrap();
    source.holds(blob);
    let size = bytes.len() as u64;
    let first = Node::start(&fleet, coordinator.address).await;
    first.fetch(blob, size).await.unwrap();
    // It answers no more, and the tracker does not know it yet.
    source.server.take();
    let late = Node::start(&fleet, coordinator.address).await;
    late.fetch(blob, size).await.unwrap();
    assert!(late.read(blob) == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_is_a_parent_like_any_other() {
    let (_folder, store, coordinator) = coordinator().await;
    let fleet = Fleet::new();
    let bytes = bytes_of(20 * PIECE + 1, 4);
    let blob = store.put_bytes(&bytes).unwrap();
    fleet.with(|tracker| {
        tracker.node_came(COORDINATOR, Reach { can_be_dialled: true, children_max: None });
        tracker.has_all(blob, COORDINATOR);
    });
    let node = Node::start(&fleet, coordinator.address).await;
    node.fetch(blob, bytes.len() as u64).await.unwrap();
    assert!(node.read(blob) == bytes);
    let wrong = node.fetch(store.put_bytes(&bytes_of(2 * PIECE, 5)).unwrap(), 1).await;
    assert!(matches!(wrong, Err(FetchError::Size { expected: 1, .. })), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_nodes_of_the_fleet_are_served_and_only_what_is_here() {
    let (_folder, _, coordinator) = coordinator().await;
    let fleet = Fleet::new();
    let source = Node::start(&fleet, coordinator.address).await;
    let other = Node::start(&fleet, coordinator.address).await;
    let blob = source.store.put_bytes(&bytes_of(3 * PIECE, 6)).unwrap();
    let address = source.server.as_ref().unwrap().address;
    let name = hatchery_common::tls::node_server_name(source.id);
    let call = async |identity: &Identity, blob: BlobId| {
        let config = credentials_of(identity, address).client_config().unwrap();
        let channel =
            connect_to(Arc::new(Tcp), &name, &[address.to_string()], config, Profile::Bulk).await.unwrap();
        let open = to_parent::Message::Open(v1::Open {
            blob: blob.to_string(),
            with_manifest: true,
            takes_squeezed: true,
        });
        let requests = tokio_stream::iter([v1::ToParent { message: Some(open) }]);
        let mut client = PeersClient::new(channel).max_decoding_message_size(BULK_MESSAGE_BYTES_MAX);
        let mut answers = client.fetch(requests).await?.into_inner();
        answers.message().await.map(Option::unwrap)
    };
    let Some(to_child::Message::Have(have)) = call(&other.identity, blob).await.unwrap().message else {
        panic!("it begins with what is there")
    };
    assert_eq!(PieceManifest::decode(&have.manifest.unwrap()).unwrap().id(), blob);
    assert!(PieceSet::from_bytes(have.count, &have.pieces).unwrap().is_full());

    let nobody = "0".repeat(64).parse().unwrap();
    assert_eq!(call(&other.identity, nobody).await.unwrap_err().code(), Code::NotFound);
    let person = Identity::new(Role::Operator("ada".parse().unwrap()));
    assert_eq!(call(&person, blob).await.unwrap_err().code(), Code::PermissionDenied);
    source.service.revoke([other.identity.certificate]);
    assert_eq!(call(&other.identity, blob).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(source.folder.path().exists());
}

/// How a parent breaks the rules.
#[derive(Clone, Copy, Debug)]
enum Vice {
    FlipsABit,
    SendsAnotherPiece,
    SendsWhatNobodyAskedFor,
    SaysThatItHasMore,
    SaysAnotherCount,
    IsSilent,
    EndsAtOnce,
}

/// A parent that says it has all of a blob, and does not do what it should.
struct Villain {
    bytes: Vec<u8>,
    vice: Vice,
}

#[tonic::async_trait]
impl Peers for Villain {
    type FetchStream = ReceiverStream<Result<v1::ToChild, Status>>;

    async fn fetch(
        &self,
        request: Request<Streaming<v1::ToParent>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let (sender, receiver) = mpsc::channel(64);
        let (manifest, bytes, vice) = (PieceManifest::of_bytes(&self.bytes), self.bytes.clone(), self.vice);
        let mut inbound = request.into_inner();
        tokio::spawn(async move {
            let count = manifest.piece_count();
            let say = async |message| {
                let _gone = sender.send(Ok(v1::ToChild { message: Some(message) })).await;
            };
            let piece = |index: u32| {
                let range = manifest.piece_range(index % count).unwrap();
                bytes[range.start as usize..range.end as usize].to_vec()
            };
            let claimed = if matches!(vice, Vice::SaysAnotherCount) { count + 1 } else { count };
            let pieces = PieceSet::full(claimed).to_bytes();
            say(to_child::Message::Have(v1::Have { manifest: None, pieces, count: claimed })).await;
            if matches!(vice, Vice::SaysThatItHasMore) {
                say(to_child::Message::Has(v1::Has { pieces: vec![count] })).await;
            }
            while let Ok(Some(message)) = inbound.message().await {
                let Some(to_parent::Message::Ask(ask)) = message.message else { continue };
                let index = match ask.wanted.unwrap() {
                    v1::ask::Wanted::Piece(index) => index,
                    v1::ask::Wanted::AnyOf(set) => {
                        PieceSet::from_bytes(count, &set).unwrap().indexes().next().unwrap()
                    }
                };
                let ask = ask.ask;
                let (ask, index, bytes) = match vice {
                    Vice::FlipsABit => {
                        let mut bytes = piece(index);
                        bytes[7] ^= 1;
                        (ask, index, bytes)
                    }
                    Vice::SendsAnotherPiece => (ask, index, piece(index + 1)),
                    Vice::SendsWhatNobodyAskedFor => (ask + 1000, count + 5, piece(index)),
                    Vice::IsSilent => continue,
                    Vice::EndsAtOnce => return,
                    Vice::SaysThatItHasMore | Vice::SaysAnotherCount => (ask, index, piece(index)),
                };
                say(to_child::Message::Begins(v1::Begins { ask, piece: index })).await;
                let bytes = bytes.into();
                say(to_child::Message::Piece(v1::SwarmPiece { ask, index, bytes, squeezed_width: 0 })).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_parent_can_make_a_node_take_wrong_bytes_or_wait_for_ever() {
    let (_folder, _, coordinator) = coordinator().await;
    let fleet = Fleet::new();
    let source = Node::start(&fleet, coordinator.address).await;
    for (seed, vice) in [
        Vice::FlipsABit,
        Vice::SendsAnotherPiece,
        Vice::SendsWhatNobodyAskedFor,
        Vice::SaysThatItHasMore,
        Vice::SaysAnotherCount,
        Vice::IsSilent,
        Vice::EndsAtOnce,
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = bytes_of(30 * PIECE + 5, 10 + seed as u64);
        let blob = source.store.put_bytes(&bytes).unwrap();
        let villain = NodeId::random();
        let server =
            Server::start_as(villain, Routes::new(services::peers(Villain { bytes: bytes.clone(), vice })))
                .await;
        let node = Node::start(&fleet, coordinator.address).await;
        fleet.0.lock().unwrap().exchanges.insert(villain, (node.exchange.clone(), server.address));
        fleet.with(|tracker| tracker.node_came(villain, Reach { can_be_dialled: true, children_max: None }));
        fleet.with(|tracker| tracker.has_all(blob, villain));
        source.holds(blob);
        // The honest one is slow enough that the other one is asked too.
        source.shares.limit().set(Some(60 * PIECE as u64));
        node.fetch(blob, bytes.len() as u64).await.unwrap_or_else(|error| panic!("{vice:?}: {error}"));
        assert!(node.read(blob) == bytes, "{vice:?}");
        let accused = fleet.troubles().contains(&(node.id, Trouble::Wrong(villain)));
        let sends_wrong_bytes =
            matches!(vice, Vice::FlipsABit | Vice::SendsAnotherPiece | Vice::SendsWhatNobodyAskedFor);
        assert_eq!(accused, sends_wrong_bytes, "{vice:?}: {:?}", fleet.troubles());
        assert!(fleet.troubles().iter().all(|(_, trouble)| *trouble != Trouble::Wrong(source.id)));
        fleet.with(|tracker| tracker.node_left(villain));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_has_it_is_an_error_and_a_store_that_is_full_too() {
    let (_folder, store, coordinator) = coordinator().await;
    let fleet = Fleet::new();
    let bytes = bytes_of(9 * PIECE, 30);
    let blob = store.put_bytes(&bytes).unwrap();
    let node = Node::start(&fleet, coordinator.address).await;
    let nobody = node.fetch(blob, bytes.len() as u64).await;
    assert!(matches!(nobody, Err(FetchError::NoHolder { .. })), "{nobody:?}");

    let folder = tempfile::tempdir().unwrap();
    let small = BlobStore::open(folder.path(), BlobLimits { quota_bytes: Some(1000), free_bytes_min: 0 });
    let small = small.unwrap();
    let shares = Shares::new(small.clone(), RateLimit::new(None));
    let (_, known) = watch::channel(credentials_of(&node.identity, coordinator.address));
    let (troubles, _told) = mpsc::channel(1);
    let exchange = Exchange::new(small.clone(), shares, Arc::new(Tcp), known, troubles);
    let client = BlobClient::connect(&credentials(coordinator.address)).await.unwrap();
    let full = exchange.fetch(blob, bytes.len() as u64, &client, RateLimit::new(None), |_| {}).await;
    assert!(matches!(full, Err(FetchError::Blob(_))), "{full:?}");
    assert!(small.partials().is_empty() && small.used_bytes() == 0);
}
