//! The service: what is here, and the pieces of one.

use std::{future::ready, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use hatchery_common::{
    blob::{BlobError, BlobStore},
    field::FieldError,
    id::BlobId,
};
use hatchery_proto::{
    services::invalid,
    v1::{
        GetRequest, GetResponse, HaveRequest, HaveResponse, Piece, PutRequest, PutResponse,
        blobs_server::Blobs, get_response,
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    ANSWERS_AHEAD, GETS_MAX, HAVE_BLOBS_MAX, PIECES_AHEAD, PUTS_MAX, error::status_of, receive::Receiving,
};
use crate::blocking;

/// Serves a blob store. Who may call is for the layers around it.
#[derive(Clone, Debug)]
pub struct BlobService {
    store: BlobStore,
    gets: Arc<Semaphore>,
    puts: Arc<Semaphore>,
}

impl BlobService {
    /// Serves this store, to several callers at once.
    pub fn new(store: BlobStore) -> Self {
        Self { store, gets: Arc::new(Semaphore::new(GETS_MAX)), puts: Arc::new(Semaphore::new(PUTS_MAX)) }
    }
}

#[tonic::async_trait]
impl Blobs for BlobService {
    async fn have(&self, request: Request<HaveRequest>) -> Result<Response<HaveResponse>, Status> {
        let mut blobs = request.into_inner().blobs;
        if blobs.len() > HAVE_BLOBS_MAX {
            let problem = format!("has {} entries, more than the limit of {HAVE_BLOBS_MAX}", blobs.len());
            return Err(invalid(FieldError::new("blobs", problem)));
        }
        for (index, blob) in blobs.iter().enumerate() {
            blob_id(&format!("blobs.{index}"), blob)?;
        }
        blobs.retain(|blob| blob.parse().is_ok_and(|id| !self.store.has(id)));
        Ok(Response::new(HaveResponse { missing: blobs }))
    }

    type GetStream = BoxStream<'static, Result<GetResponse, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let GetRequest { blob, first_piece, end_piece } = request.into_inner();
        let id = blob_id("blob", &blob)?;
        let turn = turn(&self.gets).await;
        let store = self.store.clone();
        let reader = Arc::new(blocking(move || store.reader(id)).await.map_err(|error| status_of(&error))?);
        let count = reader.manifest().piece_count();
        let end = end_piece.unwrap_or(count);
        if first_piece > end || end > count {
            return Err(Status::out_of_range(format!(
                "there are no pieces {first_piece} to {end} in blob {id}; it has {count}"
            )));
        }
        let manifest = get_response::Part::Manifest(reader.manifest().encode());
        let pieces = stream::iter(first_piece..end)
            .map(move |index| {
                let reader = Arc::clone(&reader);
                blocking(move || {
                    let bytes = reader.read_piece(index)?.into();
                    Ok::<_, BlobError>(get_response::Part::Piece(Piece { index, bytes }))
                })
            })
            .buffered(PIECES_AHEAD)
            .map_err(|error| status_of(&error));
        let parts = stream::once(ready(Ok(manifest))).chain(pieces).map(move |part| {
            // The turn ends with the stream.
            let _turn = &turn;
            part.map(|part| GetResponse { part: Some(part) })
        });
        Ok(Response::new(parts.boxed()))
    }

    type PutStream = ReceiverStream<Result<PutResponse, Status>>;

    async fn put(
        &self,
        request: Request<Streaming<PutRequest>>,
    ) -> Result<Response<Self::PutStream>, Status> {
        let turn = turn(&self.puts).await;
        let (answers, receiver) = mpsc::channel(ANSWERS_AHEAD);
        let receiving = Receiving::new(self.store.clone(), answers.clone());
        tokio::spawn(async move {
            if let Err(status) = receiving.run(request.into_inner()).await {
                // An error here says that the caller has disconnected and wants no answer.
                let _ = answers.send(Err(status)).await;
            }
            drop(turn);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn turn(turns: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(turns).acquire_owned().await.expect("the semaphore is never closed")
}

fn blob_id(field: &str, text: &str) -> Result<BlobId, Status> {
    text.parse().map_err(|error: FieldError| invalid(FieldError::new(field, error.problem)))
}
