//! The services: each call is read, put to the event loop or answered from the snapshot, and written.

#![allow(clippy::unused_async, reason = "handlers have one form, whether or not they wait")]

mod access;
mod agents;
pub(crate) mod authorization;
mod call;
mod checkpoints;
pub(crate) mod context;
mod datasets;
pub(crate) mod error;
mod fleet;
mod generate;
mod jobs;
mod lookup;
mod nodes;
mod rollouts;
mod routing;
mod status;
mod watch;

pub(crate) use agents::AgentsService;
pub(crate) use fleet::FleetService;
