//! The client for blobs.

use std::collections::HashSet;

use hatchery_common::id::BlobId;
use hatchery_proto::{
    client::answer,
    services::BULK_MESSAGE_BYTES_MAX,
    v1::{HaveRequest, blobs_client},
};
use tonic::transport::Channel;

use super::{HAVE_BLOBS_MAX, TransferError};
use crate::{Connect, RateLimit, transport::Profile};

/// Moves blobs, on a connection of its own. Cheap to clone; it finds the other side again by itself after the connection
/// was lost.
///
/// `on_bytes` of the methods hears how many more bytes are where they should be, those included that were there before:
/// in the end they sum up to the size of all blobs that were named.
#[derive(Clone, Debug)]
pub struct BlobClient {
    client: blobs_client::BlobsClient<Channel>,
    /// How fast blobs are fetched at most.
    limit: RateLimit,
}

impl Connect for BlobClient {
    const PROFILE: Profile = Profile::Bulk;

    fn over(channel: Channel) -> Self {
        let client = blobs_client::BlobsClient::new(channel)
            .max_decoding_message_size(BULK_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(BULK_MESSAGE_BYTES_MAX);
        Self { client, limit: RateLimit::new(None) }
    }
}

impl BlobClient {
    /// The same connection, over which blobs are fetched no faster than this, all who share the limit together.
    #[must_use]
    pub fn limited_to(mut self, limit: RateLimit) -> Self {
        self.limit = limit;
        self
    }

    /// Waits while more bytes have come than may.
    pub(super) async fn pace(&self, bytes: u64) {
        self.limit.settle(bytes).await;
    }

    pub(super) fn calls(&self) -> blobs_client::BlobsClient<Channel> {
        self.client.clone()
    }

    /// Those of `blobs` that are not on the other side, each once, in their order.
    pub async fn missing(&self, blobs: &[BlobId]) -> Result<Vec<BlobId>, TransferError> {
        let mut asked = HashSet::new();
        let distinct: Vec<BlobId> = blobs.iter().copied().filter(|&blob| asked.insert(blob)).collect();
        let mut missing = Vec::new();
        for some in distinct.chunks(HAVE_BLOBS_MAX) {
            let request = HaveRequest { blobs: some.iter().map(ToString::to_string).collect() };
            for text in answer(self.calls().have(request)).await?.missing {
                let blob = text.parse().ok().filter(|blob| asked.remove(blob));
                let wrong =
                    || TransferError::wrong(format!("`{text}` is missing there, but was not requested"));
                missing.push(blob.ok_or_else(wrong)?);
            }
        }
        Ok(missing)
    }
}
