//! Connections for a server: accepted, then the TLS handshake, then who it is.
//!
//! Members and strangers part here. A stranger, who shows no certificate, may do nothing but join: little, for a short
//! time, and in one of few places.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use hatchery_common::{open_files, tls::Identity};
use hatchery_proto::services::STRANGER_MESSAGE_BYTES_MAX;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::{Server, server::Connected};
use tracing::{debug, warn};

use super::{
    BULK_CONNECTION_WINDOW_BYTES, BULK_FRAME_BYTES_MAX, BULK_STREAM_WINDOW_BYTES, Connection,
    KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Listener,
    hooked::{Hooked, ReadHook},
    places::{Capacity, Place, Places},
};

/// How long a connection may take from its acceptance to the end of its handshake, the wait for a place included.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time from a place to a complete ClientHello.
const HELLO_TIMEOUT: Duration = Duration::from_millis(2500);
/// Most handshakes at once.
pub const HANDSHAKES_MAX: usize = 256;
/// Most accepted connections that wait for their handshake, and the part of all open files that they may be.
const HANDSHAKES_WAITING_MAX: usize = 2048;
const HANDSHAKES_WAITING_SHARE: usize = 4;
/// Most strangers at once, and most of one address.
const STRANGERS_MAX: usize = 64;
const STRANGERS_BY_ADDRESS_MAX: usize = 16;
/// Most strangers that wait until one of those has gone.
const STRANGERS_WAITING_MAX: usize = 256;
/// How long a stranger may stay, and how much longer an answer under way may take.
const STRANGER_STAY_MAX: Duration = Duration::from_secs(10);
const STRANGER_GRACE: Duration = Duration::from_secs(1);
/// Bytes of a stranger's that are under way in one stream and in one connection: a message.
const STRANGER_WINDOW_BYTES: u32 = STRANGER_MESSAGE_BYTES_MAX as u32;
/// Most calls at once of a stranger.
const STRANGER_STREAMS_MAX: u32 = 4;
/// Most bytes of the headers of a stranger's call.
const STRANGER_HEADER_BYTES_MAX: u32 = 4 << 10;
/// Most connections that have shaken hands and wait to be served.
const READY_QUEUE_LEN: usize = 64;
/// Pause when the system has no more sockets to give.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long, and for how many bytes, one listens on after a refusal, so that the refusal is not lost on its way.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);
const REFUSAL_LINGER_BYTES_MAX: u64 = 64 << 10;
/// Most calls at once on one connection.
const STREAMS_MAX: u32 = 256;
/// Most bytes of a call's headers.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Whom a connection belongs to; read once, from the certificate that TLS has checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is; none for one without a certificate, who may do nothing but join.
    pub identity: Option<Identity>,
    /// From where.
    pub remote: SocketAddr,
}

/// A tonic server with Hatchery's limits: keepalive, windows for bulk data, calls per connection, size of headers.
pub fn server_builder() -> Server {
    server_kept_alive()
        .initial_stream_window_size(BULK_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(BULK_CONNECTION_WINDOW_BYTES)
        .max_frame_size(BULK_FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
}

/// A tonic server for strangers: what a join takes, and no more.
pub fn stranger_server_builder() -> Server {
    server_kept_alive()
        .initial_stream_window_size(STRANGER_WINDOW_BYTES)
        .initial_connection_window_size(STRANGER_WINDOW_BYTES)
        .max_concurrent_streams(STRANGER_STREAMS_MAX)
        .http2_max_header_list_size(STRANGER_HEADER_BYTES_MAX)
        .timeout(STRANGER_STAY_MAX)
        .max_connection_age(STRANGER_STAY_MAX)
        .max_connection_age_grace(STRANGER_GRACE)
}

fn server_kept_alive() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// The members' connections that come in at a listener, each after its TLS handshake. Handshakes run side by side, bounded
/// in number and time, and shared among the addresses that they come from; one that fails is forgotten, and never ends the
/// stream.
#[derive(Debug)]
pub struct TlsIncoming {
    ready: mpsc::Receiver<TlsConnection>,
    acceptor: JoinHandle<()>,
}

/// The strangers' connections that come in at the same listener.
pub type StrangersIncoming = ReceiverStream<io::Result<TlsConnection>>;

impl TlsIncoming {
    /// Starts to accept, members alone. Must be called within a tokio runtime.
    pub fn new(listener: impl Listener + 'static, config: Arc<ServerConfig>) -> Self {
        Self::with_strangers(listener, config, HANDSHAKE_TIMEOUT).0
    }

    /// Starts to accept, strangers too, with `limit` for a handshake.
    pub fn with_strangers(
        listener: impl Listener + 'static,
        config: Arc<ServerConfig>,
        limit: Duration,
    ) -> (Self, StrangersIncoming) {
        let (members, ready) = mpsc::channel(READY_QUEUE_LEN);
        let (strangers, ready_strangers) = mpsc::channel(READY_QUEUE_LEN);
        let door = Door { config, limit, members, strangers };
        let acceptor = tokio::spawn(accept_all(listener, Arc::new(door)));
        (Self { ready, acceptor }, ReceiverStream::new(ready_strangers))
    }
}

impl Drop for TlsIncoming {
    fn drop(&mut self) {
        // The listener closes at once, and with it every handshake that is still under way.
        self.acceptor.abort();
    }
}

impl Stream for TlsIncoming {
    type Item = io::Result<TlsConnection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

/// The way of a connection from its acceptance to its server.
struct Door {
    config: Arc<ServerConfig>,
    limit: Duration,
    members: mpsc::Sender<TlsConnection>,
    strangers: mpsc::Sender<io::Result<TlsConnection>>,
}

async fn accept_all(mut listener: impl Listener, door: Arc<Door>) {
    let handshakes = Places::new(Capacity {
        places: HANDSHAKES_MAX,
        places_by_address: HANDSHAKES_MAX,
        waiting: HANDSHAKES_WAITING_MAX.min(open_files::limit() / HANDSHAKES_WAITING_SHARE),
    });
    let strangers = Places::new(Capacity {
        places: STRANGERS_MAX,
        places_by_address: STRANGERS_BY_ADDRESS_MAX,
        waiting: STRANGERS_WAITING_MAX,
    });
    let mut coming_in = JoinSet::new();
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // One connection's fault, or no socket left; neither is a reason to stop.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while coming_in.try_join_next().is_some() {}
        let (door, handshakes, strangers) = (Arc::clone(&door), handshakes.clone(), strangers.clone());
        coming_in.spawn(async move {
            let came_in = match timeout(door.limit, door.shake_hands(stream, remote, &handshakes)).await {
                Ok(Ok(connection)) => door.lead_in(connection, remote, &strangers).await,
                Ok(Err(problem)) => Err(problem),
                Err(_) => Err("timed out".to_owned()),
            };
            if let Err(problem) = came_in {
                debug!(%remote, problem, "no handshake");
            }
        });
    }
}

impl Door {
    async fn shake_hands(
        &self,
        stream: Connection,
        remote: SocketAddr,
        handshakes: &Places,
    ) -> Result<TlsConnection, String> {
        let place = handshakes.take(remote.ip()).await.ok_or("too many wait")?;
        tokio::select! {
            connection = self.handshake(stream, remote) => connection,
            () = place.lost().cancelled_owned() => Err("its place went to another address".to_owned()),
        }
    }

    async fn handshake(&self, stream: Connection, remote: SocketAddr) -> Result<TlsConnection, String> {
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
        tokio::pin!(acceptor);
        let begun = match timeout(self.limit.min(HELLO_TIMEOUT), acceptor.as_mut()).await {
            Ok(Ok(begun)) => begun,
            Ok(Err(error)) => {
                if let Some(stream) = acceptor.take_io() {
                    linger(stream).await;
                }
                return Err(error.to_string());
            }
            Err(_) => return Err("it said nothing".to_owned()),
        };
        let stream = match begun.into_stream(Arc::clone(&self.config)).into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                linger(stream).await;
                return Err(error.to_string());
            }
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identity = certificate.map(|certificate| Identity::of_certificate_der(certificate)).transpose();
        let identity = identity.map_err(|error| error.to_string())?;
        Ok(Hooked::new(stream, Admission { peer: Peer { identity, remote }, stay: None }))
    }

    /// Whoever waits to be served holds no place among the handshakes any more.
    async fn lead_in(
        &self,
        mut connection: TlsConnection,
        remote: SocketAddr,
        strangers: &Places,
    ) -> Result<(), String> {
        // An error says that the server has stopped, or takes no strangers; the connection closes with it.
        if connection.hook.peer.identity.is_some() {
            let _ = self.members.send(connection).await;
        } else if !self.strangers.is_closed() {
            let place = timeout(STRANGER_STAY_MAX, strangers.take(remote.ip())).await;
            let place = place.ok().flatten().ok_or("too many strangers")?;
            connection.hook.stay =
                Some(Stay { lost: Box::pin(place.lost().cancelled_owned()), _place: place });
            let _ = self.strangers.send(Ok(connection)).await;
        }
        Ok(())
    }
}

/// Hears the other side out for a moment: closing a socket with unread bytes resets it, and a reset may overtake the alert
/// that says why.
async fn linger(mut stream: Connection) {
    let hear_out = async {
        stream.shutdown().await?;
        let mut rest = stream.take(REFUSAL_LINGER_BYTES_MAX);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // Whatever comes of it, the connection is over.
    let _ = timeout(REFUSAL_LINGER, hear_out).await;
}

/// A connection after its handshake.
pub type TlsConnection = Hooked<TlsStream<Connection>, Admission>;

/// Who was admitted, and for a stranger the place.
#[derive(Debug)]
pub struct Admission {
    peer: Peer,
    stay: Option<Stay>,
}

#[derive(Debug)]
struct Stay {
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Place,
}

impl Connected for TlsConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.hook.peer.clone()
    }
}

/// A stranger's reads fail once the place is lost, which ends the connection.
impl<S: AsyncRead> ReadHook<S> for Admission {
    fn poll_read(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(stay) = &mut self.stay
            && stay.lost.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        stream.poll_read(context, buffer)
    }
}
