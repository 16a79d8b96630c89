//! Connections and what travels over them: TLS on both ends, blobs to and from a coordinator, pieces of blobs from node to
//! node, at no more than a rate. The messages are `hatchery-proto`'s.

mod blocking;
mod connect;
mod rate;
pub mod swarm;
pub mod transfer;
pub mod transport;

pub use blocking::blocking;
pub use connect::{Connect, join, join_over};
pub use rate::RateLimit;
