//! Moving blobs: the service that a coordinator serves, and the client of agents and people.
//!
//! Every piece is checked before it is written, on both sides, and a blob counts only when it is durable. A transfer that
//! breaks off keeps its pieces; the next one goes on from there. Files are read and written off the runtime's threads.
//! Blobs of one piece are gathered and made durable together.

mod client;
mod error;
mod fetch;
mod receive;
mod send;
mod service;
mod writing;

pub use client::BlobClient;
pub use error::TransferError;
pub(crate) use error::status_of;
pub use service::BlobService;

use std::time::Duration;

/// Most blobs in one question of what is there.
pub const HAVE_BLOBS_MAX: usize = 10_000;
/// Most calls of `Get` that are served at once; more wait for their turn.
pub const GETS_MAX: usize = 32;
/// Most calls of `Put` that are served at once; more wait for their turn.
pub const PUTS_MAX: usize = 16;
/// How long a sender may say nothing.
pub const PUT_IDLE_TIMEOUT: Duration = Duration::from_mins(1);
/// How many blobs a client fetches at once.
pub const FETCHES_AT_ONCE: usize = 8;
/// Pieces that are read before they can be sent.
const PIECES_AHEAD: usize = 2;
/// Answers that wait for a slow reader.
const ANSWERS_AHEAD: usize = 64;
/// Blobs of one piece, and bytes of them, that are made durable together.
const GATHERED_BLOBS_MAX: usize = 256;
const GATHERED_BYTES_MAX: usize = 4 << 20;
