//! The vocabulary of Hatchery: identifiers, specifications, manifests, digests, time, settings, telemetry and TLS
//! material. No async runtime, no wire format, no libtorch.

#![warn(missing_docs)]

pub mod access;
pub mod answerer;
pub mod availability;
pub mod blob;
pub mod checkpoint;
pub mod cursor;
pub mod dataset;
pub mod device;
pub mod digest;
pub mod durable;
pub mod faults;
pub mod field;
pub mod generate;
pub mod id;
pub mod job;
mod merge;
pub mod model;
pub mod node;
pub mod open_files;
pub mod placement;
pub mod recipe;
pub mod self_test;
pub mod session;
pub mod settings;
pub mod swarm;
pub mod telemetry;
pub mod time;
pub mod tls;
pub mod trainer;
pub mod view;
mod words;
