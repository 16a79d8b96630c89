//! The services with the limits of their messages, for whoever serves them.

use hatchery_common::{
    blob::{MANIFEST_BYTES_MAX, PIECE_BYTES_MAX},
    field::FieldError,
};
use tonic::Status;

use crate::{
    convert::DATASET_MANIFEST_BYTES_MAX,
    v1::{
        agents_server::{Agents, AgentsServer},
        blobs_server::{Blobs, BlobsServer},
        fleet_server::{Fleet, FleetServer},
        peers_server::{Peers, PeersServer},
    },
};

/// Largest message of the services for people and for agents, in and out; a piece manifest fits in.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Largest message of the service for blobs, in and out: one piece, and some room for what goes with it.
pub const BULK_MESSAGE_BYTES_MAX: usize = PIECE_BYTES_MAX as usize + (64 << 10);
const _: () = assert!(MANIFEST_BYTES_MAX < CONTROL_MESSAGE_BYTES_MAX, "a manifest fits in one message");
/// Largest message that carries a dataset's manifest or a list of anything.
pub const LARGE_MESSAGE_BYTES_MAX: usize = DATASET_MANIFEST_BYTES_MAX + (64 << 10);

/// The service for people. Only a dataset's manifest makes a large request.
pub fn fleet<T: Fleet>(service: T) -> FleetServer<T> {
    FleetServer::new(service)
        .max_decoding_message_size(LARGE_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(LARGE_MESSAGE_BYTES_MAX)
}

/// Largest message of one without a certificate, in and out: a join string, a certificate request, some labels.
pub const STRANGER_MESSAGE_BYTES_MAX: usize = 32 << 10;

/// The service for agents as strangers see it, who may only join.
pub fn join<T: Agents>(service: T) -> AgentsServer<T> {
    AgentsServer::new(service)
        .max_decoding_message_size(STRANGER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(STRANGER_MESSAGE_BYTES_MAX)
}

/// The service for agents.
pub fn agents<T: Agents>(service: T) -> AgentsServer<T> {
    AgentsServer::new(service)
        .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(LARGE_MESSAGE_BYTES_MAX)
}

/// The service for blobs.
pub fn blobs<T: Blobs>(service: T) -> BlobsServer<T> {
    BlobsServer::new(service)
        .max_decoding_message_size(BULK_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(BULK_MESSAGE_BYTES_MAX)
}

/// The service for pieces, from node to node.
pub fn peers<T: Peers>(service: T) -> PeersServer<T> {
    PeersServer::new(service)
        .max_decoding_message_size(CONTROL_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(BULK_MESSAGE_BYTES_MAX)
}

/// What a caller is told whose request is wrong: the field and what is wrong with it.
pub fn invalid(error: FieldError) -> Status {
    Status::invalid_argument(error.to_string())
}
