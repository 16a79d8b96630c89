//! Connections for a server: accepted, then the TLS handshake, then who it is.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use hatchery_common::tls::Identity;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    sync::{Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::{Server, server::Connected};
use tracing::{debug, warn};

use super::{
    BULK_CONNECTION_WINDOW_BYTES, BULK_FRAME_BYTES_MAX, BULK_STREAM_WINDOW_BYTES, Connection,
    KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Listener,
    hooked::{Hooked, ReadHook},
};

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most handshakes at once; more wait in the system's queue.
pub const HANDSHAKES_MAX: usize = 256;
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

/// A tonic server with the house's limits: keepalive, windows for bulk data, calls per connection, size of headers.
pub fn server_builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(BULK_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(BULK_CONNECTION_WINDOW_BYTES)
        .max_frame_size(BULK_FRAME_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
}

/// The connections that come in at a listener, each after its TLS handshake. Handshakes run side by side, bounded in number
/// and time; one that fails is forgotten, and never ends the stream.
#[derive(Debug)]
pub struct TlsIncoming {
    ready: mpsc::Receiver<TlsConnection>,
    acceptor: JoinHandle<()>,
}

impl TlsIncoming {
    /// Starts to accept. Must be called within a tokio runtime.
    pub fn new(listener: impl Listener + 'static, config: Arc<ServerConfig>) -> Self {
        Self::with_handshake_timeout(listener, config, HANDSHAKE_TIMEOUT)
    }

    /// The same, with another time for a handshake.
    pub fn with_handshake_timeout(
        listener: impl Listener + 'static,
        config: Arc<ServerConfig>,
        limit: Duration,
    ) -> Self {
        let (sender, ready) = mpsc::channel(READY_QUEUE_LEN);
        let acceptor = tokio::spawn(accept_all(listener, TlsAcceptor::from(config), limit, sender));
        Self { ready, acceptor }
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

async fn accept_all(
    mut listener: impl Listener,
    tls: TlsAcceptor,
    limit: Duration,
    ready: mpsc::Sender<TlsConnection>,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut handshakes = JoinSet::new();
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // One connection's fault, or no socket left; neither is a reason to stop.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while handshakes.try_join_next().is_some() {}
        let (tls, ready) = (tls.clone(), ready.clone());
        handshakes.spawn(async move {
            match timeout(limit, shake_hands(tls, stream, remote)).await {
                Ok(Ok(connection)) => {
                    // Whoever is waiting to be served holds no place among the handshakes.
                    drop(slot);
                    // An error says that the server has stopped; the connection closes with it.
                    let _ = ready.send(connection).await;
                }
                Ok(Err(problem)) => debug!(%remote, problem, "handshake failed"),
                Err(_) => debug!(%remote, "handshake timed out"),
            }
        });
    }
}

async fn shake_hands(
    tls: TlsAcceptor,
    stream: Connection,
    remote: SocketAddr,
) -> Result<TlsConnection, String> {
    let stream = match tls.accept(stream).into_fallible().await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            linger(stream).await;
            return Err(error.to_string());
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = certificate.map(|certificate| Identity::of_certificate_der(certificate)).transpose();
    let identity = identity.map_err(|error| error.to_string())?;
    Ok(Hooked::new(stream, Peer { identity, remote }))
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
pub type TlsConnection = Hooked<TlsStream<Connection>, Peer>;

impl Connected for TlsConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.hook.clone()
    }
}

/// Reads are left alone.
impl<S: AsyncRead> ReadHook<S> for Peer {
    fn poll_read(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        stream.poll_read(context, buffer)
    }
}
