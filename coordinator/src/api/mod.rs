//! The services: each call is read, put to the event loop or answered from the snapshot, and written.

mod agents;
pub(crate) mod authorization;
pub(crate) mod context;
pub(crate) mod error;
mod fleet;
mod lookup;
mod routing;
mod watch;

use std::pin::Pin;

use futures::Stream;
use tonic::Status;

pub(crate) use agents::AgentsService;
pub(crate) use fleet::FleetService;

/// The responses of a streaming call.
type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
