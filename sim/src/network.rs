//! The simulated network under Hatchery's own TLS.

use std::{cell::Cell, io, net::SocketAddr};

use hatchery_net::transport::{ConnectError, Connection, Listener, Network};
use turmoil::net::{TcpListener, TcpStream};

/// The way through the simulated network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wires;

#[tonic::async_trait]
impl Network for Wires {
    async fn dial(&self, address: &str) -> Result<Connection, ConnectError> {
        match TcpStream::connect(address).await {
            Ok(stream) => Ok(Box::new(stream)),
            // The simulated network says this of a cut too, where a real one says nothing.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && DOORS_OPEN.get() == 0 => {
                Err(ConnectError::NobodyListens { address: address.to_owned() })
            }
            Err(error) => {
                Err(ConnectError::Unreachable { address: address.to_owned(), problem: error.to_string() })
            }
        }
    }
}

thread_local! {
    /// How many coordinators listen: there is one at most. A simulation has a thread to itself.
    static DOORS_OPEN: Cell<usize> = const { Cell::new(0) };
}

/// Where other nodes' connections come in at a node.
pub(crate) struct SideDoor(TcpListener);

impl SideDoor {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self(TcpListener::bind(address).await?))
    }
}

#[tonic::async_trait]
impl Listener for SideDoor {
    async fn accept(&mut self) -> io::Result<(Connection, SocketAddr)> {
        let (stream, remote) = self.0.accept().await?;
        Ok((Box::new(stream), remote))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Where connections come in from the simulated network.
pub(crate) struct Door(TcpListener);

impl Drop for Door {
    fn drop(&mut self) {
        DOORS_OPEN.set(DOORS_OPEN.get() - 1);
    }
}

impl Door {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        DOORS_OPEN.set(DOORS_OPEN.get() + 1);
        Ok(Self(listener))
    }
}

#[tonic::async_trait]
impl Listener for Door {
    async fn accept(&mut self) -> io::Result<(Connection, SocketAddr)> {
        let (stream, remote) = self.0.accept().await?;
        Ok((Box::new(stream), remote))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
