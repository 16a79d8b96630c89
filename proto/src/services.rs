//! The services with the house's limits on messages, for whoever serves them.

use hatchery_common::field::FieldError;
use tonic::Status;

use crate::{
    convert::DATASET_MANIFEST_BYTES_MAX,
    transport::{BULK_MESSAGE_BYTES_MAX, CONTROL_MESSAGE_BYTES_MAX},
    v1::{
        agents_server::{Agents, AgentsServer},
        blobs_server::{Blobs, BlobsServer},
        fleet_server::{Fleet, FleetServer},
        peers_server::{Peers, PeersServer},
    },
};

/// Largest message that carries a dataset's manifest or a list of anything.
pub const LARGE_MESSAGE_BYTES_MAX: usize = DATASET_MANIFEST_BYTES_MAX + (64 << 10);

/// The service for people. Only a dataset's manifest makes a large request.
pub fn fleet<T: Fleet>(service: T) -> FleetServer<T> {
    FleetServer::new(service)
        .max_decoding_message_size(LARGE_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(LARGE_MESSAGE_BYTES_MAX)
}

/// The service for agents. It takes no large requests, because one may call it without a certificate.
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
