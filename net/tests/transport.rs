//! Real handshakes over loopback: who gets in, as whom, and what the others are told.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use hatchery_common::{
    id::{Name, NodeId},
    tls::{Authority, Identity, Role, client_config, client_config_pinned, install_provider, server_config},
};
use hatchery_net::transport::{
    ConnectError, Connection, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, Listener, Peer, Profile, TlsIncoming,
    connect, server_builder,
};
use hatchery_proto::client::connect_error;
use rustls::{ClientConfig, ServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    service::{InterceptorLayer, Routes},
    transport::Channel,
};

static FLEET: LazyLock<Authority> = LazyLock::new(new_authority);
static STRANGERS: LazyLock<Authority> = LazyLock::new(new_authority);

fn new_authority() -> Authority {
    install_provider();
    let folder = tempfile::tempdir().unwrap();
    Authority::create_or_load(folder.path()).unwrap()
}

fn fleet_server_config() -> Arc<ServerConfig> {
    server_config(&FLEET.issue_server(&[]).unwrap(), FLEET.certificate_pem()).unwrap()
}

fn operator() -> Identity {
    Identity::new(Role::Operator(Name::new("name", "ada").unwrap()))
}

/// A client of the fleet that shows the certificate that `authority` gave it.
fn client_of(authority: &Authority, identity: &Identity) -> Arc<ClientConfig> {
    let keyed = authority.issue_client_with_key(identity).unwrap();
    client_config(FLEET.certificate_pem(), Some(&keyed)).unwrap()
}

/// A server without services, which notes who calls it.
struct Fixture {
    address: SocketAddr,
    peers: Arc<Mutex<Vec<Peer>>>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_with(fleet_server_config(), HANDSHAKE_TIMEOUT, "127.0.0.1:0").await
    }

    async fn start_with(config: Arc<ServerConfig>, handshake_timeout: Duration, listen: &str) -> Self {
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (members, strangers) = TlsIncoming::with_strangers(listener, config, handshake_timeout);
        let peers = Arc::<Mutex<Vec<Peer>>>::default();
        let noted = Arc::clone(&peers);
        let note = InterceptorLayer::new(move |request: tonic::Request<()>| {
            noted.lock().unwrap().push(request.extensions().get::<Peer>().unwrap().clone());
            Ok(request)
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let server = server_builder().layer(note).add_routes(Routes::default());
        let incoming = futures::stream::select(members, strangers);
        let served = tokio::spawn(server.serve_with_incoming_shutdown(incoming, async {
            let _ = stopped.await;
        }));
        Self { address, peers, stop: Some(stop), served }
    }

    fn addresses(&self) -> Vec<String> {
        vec![self.address.to_string()]
    }

    async fn connect(&self, config: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
        connect(&self.addresses(), config, Profile::Control).await
    }

    fn last_peer(&self) -> Peer {
        self.peers.lock().unwrap().last().unwrap().clone()
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.served.await.unwrap().unwrap();
    }
}

/// Calls something that no server has; the status tells what became of the call.
async fn call(channel: Channel) -> tonic::Status {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = PathAndQuery::from_static("/nothing/Nothing");
    grpc.unary(tonic::Request::new(()), path, codec).await.unwrap_err()
}

#[tokio::test]
async fn a_member_gets_in_and_is_known_by_its_certificate() {
    let server = Fixture::start().await;
    for role in [operator().role, Role::Agent(NodeId::random())] {
        let identity = Identity::new(role);
        let config = client_of(&FLEET, &identity);
        for profile in [Profile::Control, Profile::Bulk] {
            let channel = connect(&server.addresses(), Arc::clone(&config), profile).await.unwrap();
            assert_eq!(call(channel).await.code(), tonic::Code::Unimplemented);
            let peer = server.last_peer();
            assert_eq!((peer.identity, peer.remote.ip()), (Some(identity.clone()), server.address.ip()));
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn one_without_a_certificate_gets_in_as_nobody() {
    let server = Fixture::start().await;
    server.connect(client_config(FLEET.certificate_pem(), None).unwrap()).await.unwrap();
    assert_eq!(server.last_peer().identity, None);
    server.connect(client_config_pinned(FLEET.key_hash()).unwrap()).await.unwrap();
    assert_eq!(server.last_peer().identity, None);
}

#[tokio::test]
async fn a_server_of_another_fleet_is_told_nothing() {
    let server = Fixture::start().await;
    let error = server.connect(client_config(STRANGERS.certificate_pem(), None).unwrap()).await.unwrap_err();
    assert!(matches!(&error, ConnectError::WrongAuthority { .. }), "{error}");
    assert!(error.to_string().contains("belongs to another authority; nothing was sent"), "{error}");
    let error = server.connect(client_config_pinned(STRANGERS.key_hash()).unwrap()).await.unwrap_err();
    let expected = format!(
        "{} is not the expected coordinator: the server belongs to the authority {}, not to the expected \
         authority {}; nothing was sent to it",
        server.address,
        FLEET.key_hash(),
        STRANGERS.key_hash()
    );
    assert_eq!(error.to_string(), expected);
    assert!(!error.is_absence());
    assert!(server.peers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_member_that_is_no_coordinator_cannot_pose_as_one() {
    let agent = FLEET.issue_client_with_key(&Identity::new(Role::Agent(NodeId::random()))).unwrap();
    let config = server_config(&agent, FLEET.certificate_pem()).unwrap();
    let server = Fixture::start_with(config, HANDSHAKE_TIMEOUT, "127.0.0.1:0").await;
    for config in [client_of(&FLEET, &operator()), client_config_pinned(FLEET.key_hash()).unwrap()] {
        let error = server.connect(config).await.unwrap_err();
        assert!(matches!(&error, ConnectError::WrongAuthority { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_pinned_key_itself_must_have_signed() {
    // The right authority's certificate is public: showing it proves nothing.
    let foreign = STRANGERS.issue_server(&[]).unwrap();
    let honest = server_config(&foreign, STRANGERS.certificate_pem()).unwrap();
    let mut config = ServerConfig::clone(&honest);
    let chain = [foreign.certificate_pem.as_bytes(), FLEET.certificate_pem().as_bytes()].map(|pem| {
        <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(pem)
            .unwrap()
    });
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(foreign.key_pem.as_bytes()).unwrap();
    let provider = rustls::crypto::CryptoProvider::get_default().unwrap();
    let certified = rustls::sign::CertifiedKey::from_der(chain.to_vec(), key, provider).unwrap();
    config.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    let server = Fixture::start_with(Arc::new(config), HANDSHAKE_TIMEOUT, "127.0.0.1:0").await;
    let error = server.connect(client_config_pinned(FLEET.key_hash()).unwrap()).await.unwrap_err();
    assert!(matches!(&error, ConnectError::WrongAuthority { .. }), "{error}");
}

#[tokio::test]
async fn a_certificate_of_another_fleet_is_refused_with_the_reason() {
    let server = Fixture::start().await;
    for _ in 0..10 {
        let error = server.connect(client_of(&STRANGERS, &operator())).await.unwrap_err();
        assert!(matches!(&error, ConnectError::CertificateRefused { .. }), "{error}");
        assert!(error.to_string().contains("join again with a new join string"), "{error}");
    }
    assert!(server.peers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn plain_text_is_never_spoken() {
    let server = Fixture::start().await;
    for words in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", &vec![0; 70_000]] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let _ = stream.write_all(words).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        // At most a TLS alert comes back: content type 21.
        assert!(answer.is_empty() || (answer[0] == 21 && answer.len() == 7), "{answer:?}");
    }
    server.connect(client_of(&FLEET, &operator())).await.unwrap();
}

#[tokio::test]
async fn one_that_says_nothing_is_dropped_and_delays_nobody() {
    let server = Fixture::start_with(fleet_server_config(), Duration::from_millis(200), "127.0.0.1:0").await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    // The first bytes of a handshake, and then nothing more.
    slow.write_all(&[22, 3, 1, 2, 0, 1, 0]).await.unwrap();
    server.connect(client_of(&FLEET, &operator())).await.unwrap();
    for stream in [&mut silent, &mut slow] {
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer));
        let _ = ended.await.expect("the server closes it");
    }
    server.connect(client_of(&FLEET, &operator())).await.unwrap();
}

/// A listener whose first connections come from one address, and all after them from another.
struct Elsewhere {
    listener: TcpListener,
    first: usize,
    accepted: watch::Sender<usize>,
}

#[tonic::async_trait]
impl Listener for Elsewhere {
    async fn accept(&mut self) -> io::Result<(Connection, SocketAddr)> {
        let (stream, remote) = self.listener.accept().await?;
        self.accepted.send_modify(|accepted| *accepted += 1);
        let last = if *self.accepted.borrow() <= self.first { 1 } else { 2 };
        Ok((Box::new(stream), SocketAddr::new([198, 51, 100, last].into(), remote.port())))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A server that many silent connections have dialled, none of which it gives up by itself.
async fn besieged(silent_after: usize) -> (SocketAddr, Vec<TcpStream>, JoinHandle<()>) {
    const SILENT: usize = HANDSHAKES_MAX + 50;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, mut shown) = watch::channel(0);
    let listener = Elsewhere { listener, first: SILENT + silent_after, accepted };
    let incoming = TlsIncoming::new(listener, fleet_server_config());
    let server = server_builder().add_routes(Routes::default()).serve_with_incoming(incoming);
    let served = tokio::spawn(async { server.await.unwrap() });
    let mut silent = Vec::new();
    for _ in 0..SILENT {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    shown.wait_for(|accepted| *accepted == SILENT).await.unwrap();
    (address, silent, served)
}

#[tokio::test]
async fn silent_connections_of_one_address_give_way_to_another() {
    let (address, mut silent, served) = besieged(0).await;
    let config = client_of(&FLEET, &operator());
    let member = connect(&[address.to_string()], config, Profile::Control).await.unwrap();
    assert_eq!(call(member).await.code(), tonic::Code::Unimplemented);
    // The oldest had to go for it.
    assert_eq!(silent[0].read(&mut [0; 8]).await.unwrap_or(0), 0);
    served.abort();
}

#[tokio::test]
async fn at_the_same_address_the_silent_ones_have_their_time_first() {
    let (address, _silent, served) = besieged(1).await;
    let config = client_of(&FLEET, &operator());
    let member = connect(&[address.to_string()], config, Profile::Control).await.unwrap();
    assert_eq!(call(member).await.code(), tonic::Code::Unimplemented);
    served.abort();
}

#[tokio::test]
async fn where_strangers_are_not_wanted_they_are_let_go() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = TlsIncoming::new(listener, fleet_server_config());
    let served = tokio::spawn(server_builder().add_routes(Routes::default()).serve_with_incoming(incoming));
    let stranger = client_config(FLEET.certificate_pem(), None).unwrap();
    connect(std::slice::from_ref(&address), stranger, Profile::Control).await.unwrap_err();
    let member = connect(&[address], client_of(&FLEET, &operator()), Profile::Control).await.unwrap();
    assert_eq!(call(member).await.code(), tonic::Code::Unimplemented);
    served.abort();
}

#[tokio::test]
async fn absence_is_told_from_refusal() {
    let config = client_of(&FLEET, &operator());
    let to = |address: &str| {
        let (addresses, config) = (vec![address.to_owned()], Arc::clone(&config));
        async move { connect(&addresses, config, Profile::Control).await.unwrap_err() }
    };
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let error = to(&free).await;
    assert_eq!(error, ConnectError::NobodyListens { address: free.clone() });
    assert!(error.is_absence());
    assert!(matches!(to("no-such-host.invalid:1").await, ConnectError::Address { .. }));
    assert!(matches!(to("127.0.0.1").await, ConnectError::Address { .. }));
    assert_eq!(connect(&[], Arc::clone(&config), Profile::Bulk).await.unwrap_err(), ConnectError::NoAddress);

    // Something that is no coordinator: it answers in its own words.
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = other.accept().await.unwrap();
        stream.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let error = to(&address).await;
    assert!(matches!(error, ConnectError::Protocol { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn one_that_accepts_and_stays_silent_times_out() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap().to_string();
    let error = connect(&[address], client_of(&FLEET, &operator()), Profile::Control).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("did not answer within 5 s"), "{error}");
}

#[tokio::test]
async fn the_first_address_that_will_do_is_taken() {
    let server = Fixture::start().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let stranger = server_config(&STRANGERS.issue_server(&[]).unwrap(), STRANGERS.certificate_pem()).unwrap();
    let stranger = Fixture::start_with(stranger, HANDSHAKE_TIMEOUT, "127.0.0.1:0").await;
    let config = client_of(&FLEET, &operator());
    let addresses = [free.clone(), stranger.address.to_string(), server.address.to_string()];
    connect(&addresses, Arc::clone(&config), Profile::Control).await.unwrap();
    let error = connect(&addresses[..2], config, Profile::Control).await.unwrap_err();
    assert!(matches!(&error, ConnectError::Several(errors) if errors.len() == 2), "{error}");
    assert!(
        error.to_string().contains("nothing listens at")
            && error.to_string().contains("not the expected coordinator")
    );
}

#[tokio::test]
async fn a_channel_comes_back_with_the_server_and_says_why_it_cannot() {
    let server = Fixture::start().await;
    let address = server.address;
    let channel = server.connect(client_of(&FLEET, &operator())).await.unwrap();
    assert_eq!(call(channel.clone()).await.code(), tonic::Code::Unimplemented);
    server.stop().await;
    // The first call may still find the old connection closing.
    let mut status = call(channel.clone()).await;
    for _ in 0..3 {
        status = call(channel.clone()).await;
    }
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert_eq!(connect_error(&status), Some(ConnectError::NobodyListens { address: address.to_string() }));
    let server = Fixture::start_with(fleet_server_config(), HANDSHAKE_TIMEOUT, &address.to_string()).await;
    assert_eq!(call(channel).await.code(), tonic::Code::Unimplemented);
    server.stop().await;
}

#[tokio::test]
async fn many_connect_at_once() {
    let server = Fixture::start().await;
    let config = client_of(&FLEET, &operator());
    let attempts = (0..100).map(|_| server.connect(Arc::clone(&config)));
    let channels = futures::future::join_all(attempts).await;
    assert!(channels.iter().all(Result::is_ok), "{channels:?}");
    assert_eq!(server.peers.lock().unwrap().len(), 100);
}
