//! The real coordinator, in this process, on a port of its own, spoken to as the world speaks to it.

#![allow(missing_docs)]

mod access;
mod agent;
mod answers;
mod attempts;
mod events;
mod house;
mod jobs;
mod join;
mod leases;
mod start;
