//! Pieces of blobs from node to node: the connections and files around the state machines of `hatchery_swarm`.
//!
//! ```text
//! Shares    the blobs that are served here: whole ones and those on their way   <- PeerService: a stream for each child
//! Exchange  the blobs that are fetched here, by the tracker's plans             -> a stream to each parent
//! ```
//!
//! Every piece is checked before it is written, and written before it is offered to others. What is on its way is served
//! from the same file that it is written to.

mod exchange;
mod fetch;
mod parent;
mod pool;
mod service;
mod share;
mod squeeze;
mod wire;

use std::time::Duration;

pub use exchange::Exchange;
pub use fetch::FetchError;
pub use service::PeerService;
pub use share::Shares;
pub use squeeze::{Squeezer, expand};
pub use wire::wanted;

/// Blobs of more than this go from node to node; smaller ones have one piece and come from the coordinator.
pub const SWARM_SIZE_BYTES_MIN: u64 = hatchery_common::blob::PIECE_BYTES_MIN as u64 + 1;
/// Most streams to children that are served at once, all blobs together.
const CHILDREN_STREAMS_MAX: usize = 256;
/// Most of them to one node, and how long one may ask for nothing.
const STREAMS_OF_A_NODE_MAX: usize = 32;
const ASK_WITHIN: Duration = Duration::from_mins(15);
/// Messages to one child that wait for the connection.
const TO_CHILD_AHEAD: usize = 2;
/// What a child is to be sent that waits for its turn: a piece, and a `Nothing` for each ask.
const SENDS_AHEAD: usize = hatchery_swarm::limits::ASKS_PER_CHILD_MAX + 2;
/// Messages to one parent that wait for the connection; a parent that reads none of so many counts as lost.
const TO_PARENT_AHEAD: usize = 64;
/// What came from all parents and waits to be looked at.
const EVENTS_AHEAD: usize = 256;
/// How often at most a child is told of new pieces.
const TELLING_SPACING: Duration = Duration::from_millis(15);
/// How long a parent may take to say what it has.
const HAVE_WITHIN: Duration = Duration::from_secs(10);
/// How long a child may take to say what it wants.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// Pauses before a parent is dialled again.
const REDIAL_FIRST: Duration = Duration::from_millis(50);
const REDIAL_LONGEST: Duration = Duration::from_secs(5);
/// How long to wait for the first plan.
const PLAN_WITHIN: Duration = Duration::from_secs(10);
/// How long nobody may have anything of a blob.
const HOLDER_WITHIN: Duration = Duration::from_secs(5);
/// How long no new piece may come while there are parents.
const PIECE_WITHIN: Duration = Duration::from_mins(2);
/// How long a receiver waits for a place at a parent.
const SLOT_WITHIN: Duration = Duration::from_mins(10);
/// Connections to other nodes that are kept; those that were not used for a while go first.
const CONNECTIONS_MAX: usize = 64;
const CONNECTION_IDLE: Duration = Duration::from_mins(1);
