//! Writing blobs off the runtime's threads; the same for a server that receives and a client that fetches.

use std::time::Duration;

use bytes::Bytes;
use hatchery_common::{
    blob::{BlobError, BlobStore, BlobWriter, PieceManifest},
    id::BlobId,
};
use tokio::{runtime::Handle, time::Instant};

use crate::blocking;

/// How long to wait for another writer of the same blob: one whose connection broke may be just about to let go.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often to look.
const BUSY_POLL: Duration = Duration::from_millis(20);

/// A writer that waits for the disk on another thread when it is let go.
#[derive(Debug)]
pub(super) struct Writing(Option<BlobWriter>);

/// What came of a step.
#[derive(Debug)]
pub(super) enum Step {
    /// Pieces are missing still.
    Open(Writing),
    /// The blob is durable.
    Complete,
}

impl Writing {
    /// Starts or goes on with a blob; complete if it is here, or nothing but the end was missing.
    pub(super) async fn open(store: &BlobStore, manifest: PieceManifest) -> Result<Step, BlobError> {
        Self::begin(move |store| store.writer(manifest.clone()), store).await
    }

    /// Goes on with a blob that was begun here before; none if there is no such.
    pub(super) async fn resume(store: &BlobStore, id: BlobId) -> Result<Option<Step>, BlobError> {
        match Self::begin(move |store| store.resume(id), store).await {
            Err(BlobError::NotFound { .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    async fn begin(
        open: impl Fn(&BlobStore) -> Result<BlobWriter, BlobError> + Clone + Send + 'static,
        store: &BlobStore,
    ) -> Result<Step, BlobError> {
        let deadline = Instant::now() + BUSY_WAIT_MAX;
        loop {
            let (open, store) = (open.clone(), store.clone());
            match blocking(move || open(&store).and_then(finish_if_complete)).await {
                Err(BlobError::Present { .. }) => return Ok(Step::Complete),
                Err(BlobError::Busy { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(BUSY_POLL).await;
                }
                other => return other,
            }
        }
    }

    /// Checks a piece and writes it. Bytes that are not the piece are an error, and not written.
    pub(super) async fn write(mut self, index: u32, bytes: Bytes) -> Result<Step, BlobError> {
        let writer = self.0.take().expect("a writer is taken only by the step that ends it");
        blocking(move || {
            writer.write_piece(index, &bytes)?;
            finish_if_complete(writer)
        })
        .await
    }

    /// The pieces that are missing, as ranges in order.
    pub(super) fn missing(&self) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for index in self.writer().missing() {
            match ranges.last_mut() {
                Some((_, end)) if *end == index => *end += 1,
                _ => ranges.push((index, index + 1)),
            }
        }
        ranges
    }

    pub(super) fn manifest(&self) -> &PieceManifest {
        self.writer().manifest()
    }

    fn writer(&self) -> &BlobWriter {
        self.0.as_ref().expect("a writer is taken only by the step that ends it")
    }

    /// Lets go, and waits until what was written is saved.
    pub(super) async fn close(mut self) {
        let writer = self.0.take();
        blocking(move || drop(writer)).await;
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(writer) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(blocking(move || drop(writer)));
        }
    }
}

fn finish_if_complete(writer: BlobWriter) -> Result<Step, BlobError> {
    if writer.have_count() < writer.manifest().piece_count() {
        return Ok(Step::Open(Writing(Some(writer))));
    }
    writer.finish().map(|_| Step::Complete)
}

/// How many bytes a blob's pieces `first..end` have.
pub(super) fn range_bytes(manifest: &PieceManifest, (first, end): (u32, u32)) -> u64 {
    let start = manifest.piece_range(first).map_or(0, |range| range.start);
    let end = end.checked_sub(1).and_then(|last| manifest.piece_range(last)).map_or(start, |range| range.end);
    end - start
}
