//! What lies below TLS: TCP, or whatever stands in for it in a simulation.

use std::{fmt, io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader},
    net::{TcpListener, TcpSocket, TcpStream, lookup_host},
};

use super::{
    ConnectError,
    error::dial_error,
    gathered::{Gathered, gathered},
};

/// Idle time after which the system asks whether the other side still exists.
const TCP_KEEPALIVE: Duration = Duration::from_mins(1);

/// Most connections that the system holds ready until they are accepted.
const LISTEN_QUEUE_LEN: u32 = 4096;

/// Bytes that are taken from the system at once.
const READ_AHEAD_BYTES: usize = 32 << 10;

/// Bytes in order, both ways.
pub trait Bytes: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Bytes for T {}

/// One connection.
pub type Connection = Box<dyn Bytes>;

/// The way to other machines.
#[tonic::async_trait]
pub trait Network: fmt::Debug + Send + Sync {
    /// Connects to `address`, `host:port`.
    async fn dial(&self, address: &str) -> Result<Connection, ConnectError>;
}

/// Where connections come in.
#[tonic::async_trait]
pub trait Listener: Send {
    /// The next connection, and from where it comes.
    async fn accept(&mut self) -> io::Result<(Connection, SocketAddr)>;

    /// Where it listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

#[tonic::async_trait]
impl Listener for Box<dyn Listener> {
    async fn accept(&mut self) -> io::Result<(Connection, SocketAddr)> {
        (**self).accept().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        (**self).local_addr()
    }
}

/// TCP as the system has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Tcp {
    /// Listens, with room for a whole fleet that dials at once: a dial that finds none waits a second before its next try.
    pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(LISTEN_QUEUE_LEN)
    }
}

#[tonic::async_trait]
impl Network for Tcp {
    async fn dial(&self, address: &str) -> Result<Connection, ConnectError> {
        let not_found = |problem: String| ConnectError::Address { address: address.to_owned(), problem };
        let found: Vec<_> =
            lookup_host(address).await.map_err(|error| not_found(error.to_string()))?.collect();
        if found.is_empty() {
            return Err(not_found("it has no address".to_owned()));
        }
        let mut problem = None;
        let mut connected = None;
        for each in found {
            match TcpStream::connect(each).await {
                Ok(stream) => {
                    connected = Some(stream);
                    break;
                }
                // That nobody listens at one of them says little where another one cannot even be reached.
                Err(error) => {
                    let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
                    if problem.as_ref().is_none_or(refused) {
                        problem = Some(error);
                    }
                }
            }
        }
        let gone = || problem.unwrap_or_else(|| io::ErrorKind::NotFound.into());
        let stream = connected.ok_or_else(|| dial_error(address, &gone()))?;
        stream.set_nodelay(true).map_err(|error| dial_error(address, &error))?;
        Ok(Box::new(buffered(stream)))
    }
}

#[tonic::async_trait]
impl Listener for TcpListener {
    async fn accept(&mut self) -> io::Result<(Connection, SocketAddr)> {
        let (stream, remote) = Self::accept(self).await?;
        // A connection that is gone already shows in its handshake.
        if let Err(error) = tune(&stream) {
            tracing::debug!(%remote, %error, "cannot set options of a connection");
        }
        Ok((Box::new(buffered(stream)), remote))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

/// TLS reads 4 KiB at a time; this asks the system once for what has come by then.
fn buffered(stream: TcpStream) -> BufReader<Gathered<TcpStream>> {
    BufReader::with_capacity(READ_AHEAD_BYTES, gathered(stream))
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))
}
