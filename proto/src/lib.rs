//! The wire: generated messages and services, their conversion to and from domain types, typed clients over a channel
//! that stands, and servers with the limits of their messages. Nothing else knows prost; connections are `hatchery-net`'s.

#![warn(missing_docs)]

pub mod client;
pub mod convert;
pub mod services;

/// The generated code of `hatchery/v1/*.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("hatchery.v1");
}

/// The compiled descriptors of `hatchery/v1/*.proto`, for reflection and for enumerating the calls.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
