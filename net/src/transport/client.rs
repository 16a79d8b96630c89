//! Connections for a client.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hatchery_common::tls::SERVER_NAME;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    body::Body,
    codegen::http::{Request, header},
    transport::{Channel, Endpoint},
};
use tower::{ServiceExt, service_fn};

use super::{
    BULK_CONNECTION_WINDOW_BYTES, BULK_FRAME_BYTES_MAX, BULK_STREAM_WINDOW_BYTES, ConnectError, Connection,
    KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, Network, Tcp,
    error::tls_error,
    hooked::{Hooked, ReadHook},
};

/// How long one address may take for connection and TLS, and the server for its first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What is asked for to see whether the server answers. No service has this name, so every server answers in one frame.
const PROBE_URI: &str = "http://coordinator.hatchery/hatchery.Probe/Probe";
/// The origin of all calls. TLS lies below what tonic sees.
const ORIGIN: &str = "http://coordinator.hatchery";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Calls and sessions.
    Control,
    /// Blobs: more bytes under way at once.
    Bulk,
}

/// Connects to the first of `addresses` (`host:port`) that will do, and waits until the server has answered once, so that
/// a certificate which it does not take shows here and not in the first call. The channel connects again by itself
/// when it must; [`connect_error`](hatchery_proto::client::connect_error) reads why that failed out of a call's status.
pub async fn connect(
    addresses: &[String],
    config: Arc<ClientConfig>,
    profile: Profile,
) -> Result<Channel, ConnectError> {
    connect_over(Arc::new(Tcp), addresses, config, profile).await
}

/// The same over another network than the system's.
pub async fn connect_over(
    network: Arc<dyn Network>,
    addresses: &[String],
    config: Arc<ClientConfig>,
    profile: Profile,
) -> Result<Channel, ConnectError> {
    connect_to(network, SERVER_NAME, addresses, config, profile).await
}

/// Connects to whoever has a certificate of this name: the coordinator, or a node
/// ([`node_server_name`](hatchery_common::tls::node_server_name)).
pub async fn connect_to(
    network: Arc<dyn Network>,
    server_name: &str,
    addresses: &[String],
    config: Arc<ClientConfig>,
    profile: Profile,
) -> Result<Channel, ConnectError> {
    let first = addresses.first().ok_or(ConnectError::NoAddress)?.clone();
    let tls = TlsConnector::from(config);
    let server_name = ServerName::try_from(server_name.to_owned()).map_err(|error| {
        ConnectError::Address { address: first.clone(), problem: format!("{server_name}: {error}") }
    })?;
    let dialer = Dialer { network, addresses: addresses.into(), tls, server_name, last: Last::default() };
    let last = dialer.last.clone();
    let connector = service_fn(move |_| {
        let dialer = dialer.clone();
        async move { dialer.dial().await.map(TokioIo::new) }
    });
    let mut endpoint = Endpoint::from_static(ORIGIN)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    if profile == Profile::Bulk {
        endpoint = endpoint
            .initial_stream_window_size(BULK_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(BULK_CONNECTION_WINDOW_BYTES)
            .max_frame_size(BULK_FRAME_BYTES_MAX);
    }
    let answered = async {
        let channel = endpoint.connect_with_connector(connector).await?;
        let probe = timeout(CONNECT_TIMEOUT, probe(channel.clone())).await;
        Ok::<_, tonic::transport::Error>(probe.map(|answer| answer.map(|()| channel)))
    };
    let problem = match answered.await {
        Ok(Ok(Ok(channel))) => return Ok(channel),
        Ok(Err(_)) => {
            return Err(ConnectError::TimedOut { address: first, timeout: CONNECT_TIMEOUT });
        }
        Ok(Ok(Err(error))) | Err(error) => error,
    };
    // The dialer knows best; what tonic says has gone through many hands.
    let said = last.take();
    Err(said.unwrap_or_else(|| ConnectError::Protocol { address: first, problem: in_full(&problem) }))
}

/// Any answer will do, a refusal too: it says that the server has taken the connection.
async fn probe(channel: Channel) -> Result<(), tonic::transport::Error> {
    let request = Request::post(PROBE_URI)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Body::empty())
        .expect("the parts of the request are constant");
    channel.oneshot(request).await.map(drop)
}

fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// What last went wrong on the way to a server.
#[derive(Clone, Debug, Default)]
struct Last(Arc<Mutex<Option<ConnectError>>>);

impl Last {
    fn set(&self, error: ConnectError) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn take(&self) -> Option<ConnectError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[derive(Clone)]
struct Dialer {
    network: Arc<dyn Network>,
    addresses: Arc<[String]>,
    tls: TlsConnector,
    /// The name that the server's certificate must have.
    server_name: ServerName<'static>,
    last: Last,
}

impl Dialer {
    /// The first address that will do, tried one after the other.
    async fn dial(&self) -> Result<Hooked<TlsStream<Connection>, NoteWhy>, ConnectError> {
        let mut errors = Vec::new();
        for address in self.addresses.iter() {
            let dialed = timeout(CONNECT_TIMEOUT, self.dial_one(address)).await;
            match dialed.unwrap_or_else(|_| {
                Err(ConnectError::TimedOut { address: address.clone(), timeout: CONNECT_TIMEOUT })
            }) {
                Ok(stream) => {
                    let hook = NoteWhy { address: address.clone(), last: self.last.clone() };
                    return Ok(Hooked::new(stream, hook));
                }
                Err(error) => errors.push(error),
            }
        }
        let error = if errors.len() == 1 { errors.remove(0) } else { ConnectError::Several(errors) };
        self.last.set(error.clone());
        Err(error)
    }

    async fn dial_one(&self, address: &str) -> Result<TlsStream<Connection>, ConnectError> {
        let connection = self.network.dial(address).await?;
        self.tls
            .connect(self.server_name.clone(), connection)
            .await
            .map_err(|error| tls_error(address, &error))
    }
}

/// Notes why the server ended a connection: in TLS 1.3 a refused certificate shows only with the first bytes read.
struct NoteWhy {
    address: String,
    last: Last,
}

impl<S: AsyncRead> ReadHook<S> for NoteWhy {
    fn poll_read(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = stream.poll_read(context, buffer);
        if let Poll::Ready(Err(error)) = &result {
            self.last.set(tls_error(&self.address, error));
        }
        result
    }
}
