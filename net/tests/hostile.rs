//! Blob traffic with somebody who does not keep to the protocol: typed errors, and nothing of it stays.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::fs;

use futures::{StreamExt, stream, stream::BoxStream};
use hatchery_common::{
    blob::{BLOB_BYTES_MAX, BlobError, BlobLimits, BlobStore, PIECE_BYTES_MAX, PieceManifest},
    id::BlobId,
};
use hatchery_net::{
    Connect,
    transfer::{BlobClient, BlobService, TransferError},
    transport::{Profile, connect},
};
use hatchery_proto::{
    services::{self, BULK_MESSAGE_BYTES_MAX},
    v1::{
        GetRequest, GetResponse, HaveRequest, HaveResponse, Piece, PieceRange, PutRequest, PutResponse,
        blobs_client::BlobsClient, blobs_server::Blobs, get_response, put_request::Part,
    },
};
use support::server::{Server, credentials};
use tempfile::TempDir;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes, transport::Channel};

const PIECE: usize = 64 << 10;

struct Fixture {
    store: BlobStore,
    _folder: TempDir,
    _server: Server,
    calls: BlobsClient<Channel>,
}

impl Fixture {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let limits = BlobLimits { quota_bytes: Some(1 << 30), free_bytes_min: 0 };
        let store = BlobStore::open(folder.path(), limits).unwrap();
        let server = Server::start(Routes::new(services::blobs(BlobService::new(store.clone())))).await;
        let credentials = credentials(server.address);
        let config = credentials.client_config().unwrap();
        let channel = connect(&credentials.addresses, config, Profile::Bulk).await.unwrap();
        // Larger than allowed, so that it is the server which refuses.
        let calls = BlobsClient::new(channel).max_encoding_message_size(8 * BULK_MESSAGE_BYTES_MAX);
        Self { store, _folder: folder, _server: server, calls }
    }

    /// What becomes of a put of these parts.
    async fn put(&self, parts: Vec<Part>) -> Result<Vec<PutResponse>, Status> {
        let requests = parts.into_iter().map(|part| PutRequest { part: Some(part) });
        let mut answers = self.calls.clone().put(stream::iter(requests)).await?.into_inner();
        let mut got = Vec::new();
        while let Some(answer) = answers.message().await? {
            got.push(answer);
        }
        Ok(got)
    }

    async fn refused(&self, parts: Vec<Part>) -> Status {
        self.put(parts).await.unwrap_err()
    }
}

fn manifest_part(bytes: &[u8]) -> Part {
    Part::Manifest(PieceManifest::of_bytes(bytes).encode())
}

fn piece(index: u32, bytes: &[u8]) -> Part {
    Part::Piece(Piece { index, bytes: bytes.to_vec().into() })
}

#[tokio::test]
async fn a_put_that_makes_no_sense_is_refused_and_leaves_nothing() {
    let fixture = Fixture::start().await;
    let (small, large) = (vec![1; 1000], vec![2; 3 * PIECE]);
    let mut huge = PieceManifest::of_bytes(&large).encode();
    huge[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let cases = [
        (vec![piece(0, &small)], Code::InvalidArgument, "before any manifest"),
        (vec![Part::Manifest(b"HPM1 or so".to_vec())], Code::InvalidArgument, "not a piece manifest"),
        (vec![Part::Manifest(huge)], Code::InvalidArgument, "the blob has"),
        (vec![manifest_part(&small), piece(0, &[0; 1000])], Code::InvalidArgument, "does not match its hash"),
        (vec![manifest_part(&small), piece(1, &small)], Code::InvalidArgument, "piece 1 does not exist"),
        (
            vec![manifest_part(&large), piece(2, &[0; PIECE])],
            Code::InvalidArgument,
            "does not match its hash",
        ),
        (vec![manifest_part(&large), piece(0, &large)], Code::InvalidArgument, "does not match its hash"),
        (vec![manifest_part(&large), piece(9, &small)], Code::InvalidArgument, "piece 9 does not exist"),
        (
            vec![manifest_part(&large), piece(0, &vec![0; 2 * BULK_MESSAGE_BYTES_MAX])],
            Code::OutOfRange,
            "message length too large",
        ),
    ];
    for (parts, code, said) in cases {
        let status = fixture.refused(parts).await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(said), "{status}");
    }
    assert_eq!(fixture.store.list(), []);

    // Pieces follow from a blob's size; a manifest that has others leaves something out, or has something twice.
    let good = PieceManifest::of_bytes(&large).encode();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let too_many = BLOB_BYTES_MAX + u64::from(PIECE_BYTES_MAX);
    let lies = [
        (good[..good.len() - 32].to_vec(), "has a manifest of 112 bytes, not 80"),
        ([good.clone(), good[16..48].to_vec()].concat(), "has a manifest of 112 bytes, not 144"),
        (good[..good.len() - 1].to_vec(), "has a manifest of 112 bytes, not 111"),
        (with(8, &(2 * PIECE as u64).to_le_bytes()), "has a manifest of 80 bytes, not 112"),
        (with(8, &0_u64.to_le_bytes()), "has a manifest of 16 bytes, not 112"),
        (with(4, &(PIECE as u32 / 2).to_le_bytes()), "has pieces of 65536 bytes, not 32768"),
        (with(4, &0_u32.to_le_bytes()), "has pieces of 65536 bytes, not 0"),
        (with(8, &too_many.to_le_bytes()), "the limit is"),
    ];
    let begun = fixture.store.partials();
    for (lie, said) in lies {
        let status = fixture.refused(vec![Part::Manifest(lie)]).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(said), "{status}");
    }
    assert_eq!((fixture.store.list(), fixture.store.partials()), (vec![], begun), "none of them is begun");

    let sent = [manifest_part(&large), piece(0, &large[..PIECE])];
    let answers = fixture.put(sent.to_vec()).await.unwrap();
    assert_eq!(answers[0].missing, [PieceRange { first: 0, end: 3 }]);
    assert_eq!(answers.len(), 1, "an unfinished blob is not confirmed");
    assert_eq!(fixture.store.list(), []);
}

#[tokio::test]
async fn space_that_is_not_there_is_not_promised() {
    let fixture = Fixture::start().await;
    let size_bytes: u64 = 2 << 30;
    let pieces = size_bytes / (4 << 20);
    let mut manifest = b"HPM1".to_vec();
    manifest.extend((4u32 << 20).to_le_bytes());
    manifest.extend(size_bytes.to_le_bytes());
    manifest.extend(vec![0; 32 * pieces as usize]);
    let status = fixture.refused(vec![Part::Manifest(manifest)]).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert_eq!(fixture.store.partials(), []);
}

#[tokio::test]
async fn questions_that_make_no_sense_are_answered_with_what_is_wrong() {
    let fixture = Fixture::start().await;
    let bytes = vec![3; 3 * PIECE];
    let id = fixture.store.put_bytes(&bytes).unwrap();
    let get = async |blob: String, first_piece, end_piece| {
        fixture.calls.clone().get(GetRequest { blob, first_piece, end_piece }).await.unwrap_err()
    };
    let unknown = PieceManifest::of_bytes(b"unknown").id();
    for (status, code, said) in [
        (get(unknown.to_string(), 0, None).await, Code::NotFound, "is not in the store"),
        (get("../../etc/passwd".into(), 0, None).await, Code::InvalidArgument, "blob: `../../etc/passwd`"),
        (get(id.to_string(), 4, None).await, Code::OutOfRange, "it has 3"),
        (get(id.to_string(), 2, Some(1)).await, Code::OutOfRange, "it has 3"),
        (get(id.to_string(), 0, Some(4)).await, Code::OutOfRange, "it has 3"),
    ] {
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(said), "{status}");
    }
    let have = async |blobs| fixture.calls.clone().have(HaveRequest { blobs }).await.unwrap_err();
    let status = have(vec![id.to_string(), "12".into()]).await;
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "blobs.1: must be 32 bytes, not 1")
    );
    let status = have(vec![id.to_string(); 10_001]).await;
    assert!(status.message().contains("more than the limit of 10000"), "{status}");
}

/// A server that gives whatever it was told to give.
struct Liar {
    get: Vec<GetResponse>,
    put: Vec<PutResponse>,
}

#[tonic::async_trait]
impl Blobs for Liar {
    async fn have(&self, request: Request<HaveRequest>) -> Result<Response<HaveResponse>, Status> {
        Ok(Response::new(HaveResponse { missing: request.into_inner().blobs }))
    }

    type GetStream = BoxStream<'static, Result<GetResponse, Status>>;

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        Ok(Response::new(stream::iter(self.get.clone()).map(Ok).boxed()))
    }

    type PutStream = BoxStream<'static, Result<PutResponse, Status>>;

    async fn put(&self, _: Request<Streaming<PutRequest>>) -> Result<Response<Self::PutStream>, Status> {
        let answers = stream::iter(self.put.clone()).map(Ok);
        // A stream with answers stays open, so that what is wrong is never that it ended.
        let answers =
            if self.put.is_empty() { answers.boxed() } else { answers.chain(stream::pending()).boxed() };
        Ok(Response::new(answers))
    }
}

async fn client_of(liar: Liar) -> (Server, BlobClient) {
    let server = Server::start(Routes::new(services::blobs(liar))).await;
    let client = BlobClient::connect(&credentials(server.address)).await.unwrap();
    (server, client)
}

#[tokio::test]
async fn a_fetch_believes_nothing() {
    let (small, large) = (vec![1; 1000], vec![2; 3 * PIECE]);
    let manifest = |bytes: &[u8]| get_response::Part::Manifest(PieceManifest::of_bytes(bytes).encode());
    let piece =
        |index, bytes: &[u8]| get_response::Part::Piece(Piece { index, bytes: bytes.to_vec().into() });
    let cases = [
        (&small, vec![], "without its manifest"),
        (&small, vec![piece(0, &small)], "without its manifest"),
        (&small, vec![manifest(&large)], "with the manifest of"),
        (&small, vec![get_response::Part::Manifest(vec![0; 99])], "not a piece manifest"),
        (&small, vec![manifest(&small)], "ended before piece 0"),
        (&small, vec![manifest(&small), piece(0, &[0; 1000])], "does not match its hash"),
        (&small, vec![manifest(&small), piece(0, &large)], "does not match its hash"),
        (&large, vec![manifest(&large), piece(1, &large[..PIECE])], "piece 1 came instead of piece 0"),
        (&large, vec![manifest(&large), piece(0, &large[..PIECE])], "ended before piece 1"),
        (&large, vec![manifest(&large), manifest(&large)], "a second manifest"),
        (
            &large,
            vec![manifest(&large), piece(0, &large[..PIECE]), piece(1, &[7; PIECE])],
            "does not match its hash",
        ),
    ];
    for (wanted, parts, said) in cases {
        let get = parts.into_iter().map(|part| GetResponse { part: Some(part) }).collect();
        let (_server, client) = client_of(Liar { get, put: vec![] }).await;
        let folder = tempfile::tempdir().unwrap();
        let store =
            BlobStore::open(folder.path(), BlobLimits { quota_bytes: None, free_bytes_min: 0 }).unwrap();
        let id = PieceManifest::of_bytes(wanted).id();
        let error = client.fetch(id, &store, |_| {}).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error} does not say {said}");
        assert!(
            matches!(
                error,
                TransferError::WrongAnswer(_) | TransferError::Blob(BlobError::WrongPiece { .. })
            ),
            "{error:?}"
        );
        assert!(!store.has(id));
        assert!(fs::read_dir(folder.path()).unwrap().all(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name == "partial" || name == "quarantine"
        }));
    }
}

#[tokio::test]
async fn a_put_believes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(folder.path(), BlobLimits { quota_bytes: None, free_bytes_min: 0 }).unwrap();
    let small = store.put_bytes(&[1; 1000]).unwrap();
    let large = store.put_bytes(&vec![2; 3 * PIECE]).unwrap();
    let other = PieceManifest::of_bytes(b"other").id();
    let answer = |blob: BlobId, missing: &[(u32, u32)]| PutResponse {
        blob: blob.to_string(),
        missing: missing.iter().map(|&(first, end)| PieceRange { first, end }).collect(),
    };
    let wrong_text = PutResponse { blob: "x".into(), missing: vec![] };
    for (sent, answers, said) in [
        (small, vec![], "ended too early"),
        (large, vec![], "ended too early"),
        (small, vec![answer(other, &[])], "which was not sent"),
        (small, vec![wrong_text], "which was not sent"),
        (large, vec![answer(large, &[(0, 4)])], "does not have"),
        (large, vec![answer(large, &[(2, 1)])], "does not have"),
        (large, vec![answer(large, &[(1, 3), (0, 2)])], "does not have"),
    ] {
        let (_server, client) = client_of(Liar { get: vec![], put: answers }).await;
        let error = client.put(&[sent], &store, |_| {}).await.unwrap_err();
        assert!(matches!(error, TransferError::WrongAnswer(_)), "{error:?}");
        assert!(error.to_string().contains(said), "{error} does not say {said}");
    }
}
