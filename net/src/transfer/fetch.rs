//! Fetching blobs into a store.

use std::{
    collections::HashSet,
    future::ready,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hatchery_common::{
    blob::{BlobError, BlobStore, PieceManifest},
    id::BlobId,
};
use hatchery_proto::v1::{GetRequest, GetResponse, Piece, get_response};
use tonic::Streaming;

use super::{
    BlobClient, FETCHES_AT_ONCE, GATHERED_BYTES_MAX, TransferError,
    writing::{Step, Writing, range_bytes},
};
use crate::blocking;

/// Blobs of one piece that are made durable together.
const GATHERED: usize = GATHERED_BYTES_MAX / hatchery_common::blob::PIECE_BYTES_MIN as usize;

/// Where progress is told.
type OnBytes<'a> = dyn Fn(u64) + Send + Sync + 'a;

impl BlobClient {
    /// Makes sure that a blob is in `store`; see [`BlobClient::fetch_all`].
    pub async fn fetch(
        &self,
        blob: BlobId,
        store: &BlobStore,
        on_bytes: impl FnMut(u64) + Send,
    ) -> Result<u64, TransferError> {
        self.fetch_all(&[blob], store, on_bytes).await
    }

    /// Makes sure that all `blobs` are in `store`, checked and durable, and says how many bytes had to be moved. What
    /// an earlier fetch left unfinished is gone on with. After an error, what has come is kept.
    pub async fn fetch_all(
        &self,
        blobs: &[BlobId],
        store: &BlobStore,
        on_bytes: impl FnMut(u64) + Send,
    ) -> Result<u64, TransferError> {
        let on_bytes = Mutex::new(on_bytes);
        let on_bytes: &OnBytes<'_> =
            &|bytes| (on_bytes.lock().unwrap_or_else(PoisonError::into_inner))(bytes);
        let mut seen = HashSet::new();
        let wanted: Vec<BlobId> = blobs.iter().copied().filter(|&blob| seen.insert(blob)).collect();
        let moved = Mutex::new(0);
        let count_moved = |bytes| *moved.lock().unwrap_or_else(PoisonError::into_inner) += bytes;
        let small = stream::iter(wanted)
            .map(|blob| self.fetch_one(blob, store, on_bytes, &count_moved))
            .buffer_unordered(FETCHES_AT_ONCE)
            .try_filter_map(|small| ready(Ok(small)));
        let mut groups = small.try_chunks(GATHERED);
        while let Some(group) = groups.next().await {
            let (group, error) = match group {
                Ok(group) => (group, None),
                Err(stopped) => (stopped.0, Some(stopped.1)),
            };
            let store = store.clone();
            blocking(move || store.put_many(&group)).await?;
            if let Some(error) = error {
                return Err(error);
            }
        }
        drop(groups);
        // A blob that was named again is there again.
        for blob in blobs.iter().filter(|blob| !seen.remove(blob)) {
            on_bytes(store.size(*blob).unwrap_or(0));
        }
        Ok(moved.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fetches a blob; one of a single piece is handed back, checked, for the caller to store.
    async fn fetch_one(
        &self,
        blob: BlobId,
        store: &BlobStore,
        on_bytes: &OnBytes<'_>,
        count_moved: &OnBytes<'_>,
    ) -> Result<Option<Bytes>, TransferError> {
        if let Some(size_bytes) = store.size(blob) {
            on_bytes(size_bytes);
            return Ok(None);
        }
        let on_moved = |bytes| {
            on_bytes(bytes);
            count_moved(bytes);
        };
        let mut writing = match Writing::resume(store, blob).await? {
            Some(Step::Open(writing)) => writing,
            Some(Step::Complete) => {
                on_bytes(store.size(blob).unwrap_or(0));
                return Ok(None);
            }
            None => {
                let (manifest, mut parts) = self.get(blob, 0, None).await?;
                if manifest.piece_count() <= 1 {
                    let bytes = only_piece(&manifest, &mut parts).await?;
                    on_moved(bytes.len() as u64);
                    self.pace(bytes.len() as u64).await;
                    return Ok(Some(bytes));
                }
                let count = manifest.piece_count();
                match Writing::open(store, manifest).await? {
                    Step::Open(writing) if writing.missing() == [(0, count)] => {
                        match self.take_pieces(writing, parts, (0, count), &on_moved).await? {
                            Step::Open(writing) => writing,
                            Step::Complete => return Ok(None),
                        }
                    }
                    Step::Open(writing) => writing,
                    Step::Complete => return Ok(None),
                }
            }
        };
        let missing = writing.missing();
        let missing_bytes: u64 = missing.iter().map(|range| range_bytes(writing.manifest(), *range)).sum();
        on_bytes(writing.manifest().size_bytes() - missing_bytes);
        for (first, end) in missing {
            let parts = match self.get(blob, first, Some(end)).await {
                Ok((_, parts)) => parts,
                Err(error) => {
                    writing.close().await;
                    return Err(error);
                }
            };
            match self.take_pieces(writing, parts, (first, end), &on_moved).await? {
                Step::Open(open) => writing = open,
                Step::Complete => return Ok(None),
            }
        }
        let (count, missing) = (writing.manifest().piece_count(), writing.missing().len() as u32);
        writing.close().await;
        Err(BlobError::Incomplete { id: blob, missing, count }.into())
    }

    /// A blob's manifest alone, checked to be the blob's.
    pub async fn manifest(&self, blob: BlobId) -> Result<PieceManifest, TransferError> {
        self.get(blob, 0, Some(0)).await.map(|(manifest, _)| manifest)
    }

    /// Asks for pieces; the manifest that comes first is checked to be the blob's.
    async fn get(
        &self,
        blob: BlobId,
        first_piece: u32,
        end_piece: Option<u32>,
    ) -> Result<(PieceManifest, Streaming<GetResponse>), TransferError> {
        let request = GetRequest { blob: blob.to_string(), first_piece, end_piece };
        let mut parts = self.calls().get(request).await?.into_inner();
        let first = parts.message().await?.and_then(|response| response.part);
        let Some(get_response::Part::Manifest(bytes)) = first else {
            return Err(TransferError::wrong(format!("blob {blob} came without its manifest")));
        };
        let manifest = PieceManifest::decode(&bytes)?;
        if manifest.id() != blob {
            return Err(TransferError::wrong(format!(
                "blob {blob} came with the manifest of {}",
                manifest.id()
            )));
        }
        Ok((manifest, parts))
    }

    /// Writes the pieces `first..end` as they come.
    async fn take_pieces(
        &self,
        mut writing: Writing,
        mut parts: Streaming<GetResponse>,
        (first, end): (u32, u32),
        on_moved: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Step, TransferError> {
        for index in first..end {
            let bytes = match next_piece(&mut parts, index).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    writing.close().await;
                    return Err(error);
                }
            };
            let new_bytes = bytes.len() as u64;
            match writing.write(index, bytes).await? {
                Step::Open(open) => writing = open,
                Step::Complete => {
                    on_moved(new_bytes);
                    return Ok(Step::Complete);
                }
            }
            on_moved(new_bytes);
            self.pace(new_bytes).await;
        }
        Ok(Step::Open(writing))
    }
}

/// The next piece, which must be the one that is expected.
async fn next_piece(parts: &mut Streaming<GetResponse>, expected: u32) -> Result<Bytes, TransferError> {
    match parts.message().await?.and_then(|response| response.part) {
        Some(get_response::Part::Piece(Piece { index, bytes })) if index == expected => Ok(bytes),
        Some(get_response::Part::Piece(Piece { index, .. })) => {
            Err(TransferError::wrong(format!("piece {index} came instead of piece {expected}")))
        }
        Some(get_response::Part::Manifest(_)) => {
            Err(TransferError::wrong(format!("a second manifest came instead of piece {expected}")))
        }
        None => Err(TransferError::wrong(format!("the stream ended before piece {expected}"))),
    }
}

/// All bytes of a blob that has one piece or none.
async fn only_piece(
    manifest: &PieceManifest,
    parts: &mut Streaming<GetResponse>,
) -> Result<Bytes, TransferError> {
    if manifest.piece_count() == 0 {
        return Ok(Bytes::new());
    }
    let bytes = next_piece(parts, 0).await?;
    manifest.verify(0, &bytes).map_err(|problem| BlobError::WrongPiece { id: manifest.id(), problem })?;
    Ok(bytes)
}
