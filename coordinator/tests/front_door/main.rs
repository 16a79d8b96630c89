//! The real coordinator, in this process, on a port of its own, spoken to as the world speaks to it.

// Outside of the test functions clippy takes helpers for production code.
#![allow(missing_docs, clippy::unwrap_used, clippy::large_futures)]

mod access;
mod agent;
mod answers;
mod attempts;
mod away;
mod backup;
mod blobs;
mod collect;
mod events;
mod fixture;
mod fsck;
mod hostile;
mod jobs;
mod join;
mod leases;
mod metrics;
mod rollouts;
mod start;
mod state;
