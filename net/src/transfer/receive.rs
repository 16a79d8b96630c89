//! One call of `Put`, as the server sees it.

use std::{collections::BTreeMap, mem};

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use hatchery_common::{
    blob::{BlobError, BlobLoan, BlobStore, PieceManifest},
    faults,
    field::FieldError,
    id::BlobId,
};
use hatchery_proto::{
    services::invalid,
    v1::{Piece, PieceRange, PutRequest, PutResponse, put_request},
};
use tokio::{sync::mpsc, time::timeout};
use tonic::Status;

use super::{
    GATHERED_BLOBS_MAX, GATHERED_BYTES_MAX, PUT_IDLE_TIMEOUT,
    error::status_of,
    writing::{Step, Writing},
};
use crate::blocking;

/// The state of one call.
pub(super) struct Receiving {
    store: BlobStore,
    answers: mpsc::Sender<Result<PutResponse, Status>>,
    current: Current,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    /// What has come in this call, or was here already: it stays until the caller has had time to name it, however long the
    /// call takes.
    brought: BTreeMap<BlobId, BlobLoan>,
}

/// The blob begun last.
enum Current {
    /// No blob was begun.
    Nothing,
    /// Its one piece is to come.
    Small(PieceManifest),
    /// Its pieces come one by one.
    Large(BlobId, Writing),
    /// All of it is here; what still comes of it is not needed.
    Complete,
}

impl Receiving {
    pub(super) fn new(store: BlobStore, answers: mpsc::Sender<Result<PutResponse, Status>>) -> Self {
        Self {
            store,
            answers,
            current: Current::Nothing,
            gathered: Vec::new(),
            gathered_bytes: 0,
            brought: BTreeMap::new(),
        }
    }

    /// Takes what comes until nothing more comes.
    pub(super) async fn run(
        mut self,
        mut requests: impl Stream<Item = Result<PutRequest, Status>> + Unpin,
    ) -> Result<(), Status> {
        let result = self.take_all(&mut requests).await;
        if let Current::Large(_, writing) = mem::replace(&mut self.current, Current::Nothing) {
            writing.close().await;
        }
        result
    }

    async fn take_all(
        &mut self,
        requests: &mut (impl Stream<Item = Result<PutRequest, Status>> + Unpin),
    ) -> Result<(), Status> {
        loop {
            let next = if let Some(next) = requests.next().now_or_never() {
                next
            } else {
                // The sender takes a breath: time to make durable what was gathered.
                self.settle().await?;
                timeout(PUT_IDLE_TIMEOUT, requests.next()).await.map_err(|_| {
                    let secs = PUT_IDLE_TIMEOUT.as_secs();
                    Status::deadline_exceeded(format!("no data arrived for {secs} s; send the rest again"))
                })?
            };
            match next.transpose()?.map(|request| request.part) {
                Some(Some(put_request::Part::Manifest(bytes))) => self.begin(&bytes).await?,
                Some(Some(put_request::Part::Piece(piece))) => self.piece(piece).await?,
                Some(None) => return Err(invalid(FieldError::new("part", "is missing"))),
                None => return self.settle().await,
            }
        }
    }

    async fn begin(&mut self, manifest: &[u8]) -> Result<(), Status> {
        if let Current::Large(_, writing) = mem::replace(&mut self.current, Current::Complete) {
            writing.close().await;
        }
        let manifest =
            PieceManifest::decode(manifest).map_err(|error| invalid(FieldError::new("manifest", error)))?;
        let id = manifest.id();
        if self.store.has(id) {
            return self.answer(id, Vec::new()).await;
        }
        match manifest.piece_count() {
            0 => self.gather(Bytes::new()).await,
            1 => {
                self.current = Current::Small(manifest);
                Ok(())
            }
            _ => {
                let opened = Writing::open(&self.store, manifest).await;
                self.step(id, opened, true).await
            }
        }
    }

    async fn piece(&mut self, Piece { index, bytes }: Piece) -> Result<(), Status> {
        match mem::replace(&mut self.current, Current::Complete) {
            Current::Nothing => Err(Status::invalid_argument("piece: arrived before any manifest")),
            Current::Complete => Ok(()),
            Current::Small(manifest) => {
                manifest
                    .verify(index, &bytes)
                    .map_err(|problem| status_of(&BlobError::WrongPiece { id: manifest.id(), problem }))?;
                self.gather(bytes).await
            }
            Current::Large(id, writing) => {
                let written = writing.write(index, bytes).await;
                self.step(id, written, false).await
            }
        }
    }

    /// After a step with a large blob: answers if the caller has to know.
    async fn step(&mut self, id: BlobId, step: Result<Step, BlobError>, begun: bool) -> Result<(), Status> {
        match step.map_err(|error| status_of(&error))? {
            Step::Complete => self.answer(id, Vec::new()).await,
            Step::Open(writing) => {
                let missing = if begun { writing.missing() } else { Vec::new() };
                self.current = Current::Large(id, writing);
                if begun { self.answer(id, missing).await } else { Ok(()) }
            }
        }
    }

    async fn gather(&mut self, bytes: Bytes) -> Result<(), Status> {
        self.gathered_bytes += bytes.len();
        self.gathered.push(bytes);
        if self.gathered.len() >= GATHERED_BLOBS_MAX || self.gathered_bytes >= GATHERED_BYTES_MAX {
            self.settle().await?;
        }
        Ok(())
    }

    /// Makes durable what was gathered, then says so.
    async fn settle(&mut self) -> Result<(), Status> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let (store, gathered) = (self.store.clone(), mem::take(&mut self.gathered));
        self.gathered_bytes = 0;
        let ids = blocking(move || store.put_many(&gathered)).await.map_err(|error| status_of(&error))?;
        for id in ids {
            self.answer(id, Vec::new()).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, id: BlobId, missing: Vec<(u32, u32)>) -> Result<(), Status> {
        if missing.is_empty()
            && let Some(loan) = self.store.lend(id)
        {
            self.brought.insert(id, loan);
        }
        let missing = missing.into_iter().map(|(first, end)| PieceRange { first, end }).collect();
        let answer = PutResponse { blob: id.to_string(), missing };
        faults::strikes("transfer::before_answer");
        self.answers.send(Ok(answer)).await.map_err(|_| Status::cancelled("the caller has disconnected"))
    }
}
