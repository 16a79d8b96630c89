//! The connections that carry the wire: always TLS 1.3, on loopback too; plain text is never spoken.
//!
//! A server gets its members' connections from [`TlsIncoming`], those without a certificate apart, and finds the [`Peer`]
//! of each among a request's extensions. A client calls [`connect`], which says in words why a connection did not come
//! about. Bulk data travels on a connection of its own ([`Profile::Bulk`]), so that no heartbeat queues behind it.

mod client;
mod error;
mod gathered;
mod hooked;
mod network;
mod places;
mod server;

use std::time::Duration;

pub use client::{Profile, connect, connect_over, connect_to};
pub use hatchery_proto::client::ConnectError;
pub use network::{Bytes, Connection, Listener, Network, Tcp};
pub use server::{
    HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, Peer, StrangersIncoming, TlsConnection, TlsIncoming, server_builder,
    stranger_server_builder,
};

/// How often an idle or busy connection is asked whether the other side still lives, by either side.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long the answer may take before the connection is given up.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 flow control for bulk data: bytes under way in one stream, and in one connection.
const BULK_STREAM_WINDOW_BYTES: u32 = 4 << 20;
const BULK_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Largest HTTP/2 frame for bulk data: a piece goes in few of them.
const BULK_FRAME_BYTES_MAX: u32 = 256 << 10;
