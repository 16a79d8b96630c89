//! Blobs over real TLS connections: there and back, interrupted and gone on with.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

mod support;

use std::{fs, path::PathBuf, sync::Arc, time::Instant};

use hatchery_common::{
    blob::{BlobError, BlobLimits, BlobStore, PieceManifest},
    dataset::{DatasetError, HashError, hash_scan, scan},
    id::{BlobId, Name},
    recipe::DataSpec,
};
use hatchery_net::{
    Connect, RateLimit,
    transfer::{BlobClient, BlobService, TransferError},
};
use hatchery_proto::{client::CallError, services};
use support::{
    proxy::Proxy,
    server::{Server, credentials},
};
use tempfile::TempDir;
use tokio::sync::Notify;
use tonic::service::Routes;

const NO_WATERMARK: BlobLimits = BlobLimits { quota_bytes: None, free_bytes_min: 0 };
const PIECE: usize = 64 << 10;

/// A folder in memory where the system has one: removing thousands of files that were synced takes a disk its time.
fn quick_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn new_store() -> (TempDir, BlobStore) {
    let folder = quick_folder();
    let store = BlobStore::open(folder.path(), NO_WATERMARK).unwrap();
    (folder, store)
}

/// Bytes that differ from piece to piece and from seed to seed.
fn bytes_of(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

/// A store behind a server, a network between, and a client.
struct Fixture {
    there: BlobStore,
    folder: TempDir,
    _server: Server,
    network: Proxy,
    client: BlobClient,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_with(NO_WATERMARK).await
    }

    async fn start_with(limits: BlobLimits) -> Self {
        let folder = quick_folder();
        let there = BlobStore::open(folder.path(), limits).unwrap();
        let server = Server::start(Routes::new(services::blobs(BlobService::new(there.clone())))).await;
        let network = Proxy::start(server.address).await;
        let client = BlobClient::connect(&credentials(network.address)).await.unwrap();
        Self { there, folder, _server: server, network, client }
    }
}

fn read(store: &BlobStore, blob: BlobId) -> Vec<u8> {
    fs::read(store.verified_path(blob).unwrap()).unwrap()
}

#[tokio::test]
async fn blobs_of_every_size_go_there_and_come_back() {
    let fixture = Fixture::start().await;
    let (_here_folder, here) = new_store();
    let sizes = [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 40 * PIECE + 7];
    let blobs: Vec<Vec<u8>> = (0u64..).zip(sizes).map(|(seed, size)| bytes_of(size, seed)).collect();
    let ids: Vec<BlobId> = blobs.iter().map(|bytes| here.put_bytes(bytes).unwrap()).collect();
    let total_bytes: u64 = sizes.iter().map(|size| *size as u64).sum();

    assert_eq!(fixture.client.missing(&ids).await.unwrap(), ids);
    let mut told = 0;
    let moved = fixture.client.put(&ids, &here, |bytes| told += bytes).await.unwrap();
    assert_eq!((moved, told), (total_bytes, total_bytes));
    assert_eq!(fixture.client.missing(&ids).await.unwrap(), []);
    for (id, bytes) in ids.iter().zip(&blobs) {
        assert_eq!(read(&fixture.there, *id), *bytes);
    }

    let (_other_folder, other) = new_store();
    let mut told = 0;
    let twice = [&ids[..], &ids[..1]].concat();
    let moved = fixture.client.fetch_all(&twice, &other, |bytes| told += bytes).await.unwrap();
    assert_eq!((moved, told), (total_bytes, total_bytes));
    for (id, bytes) in ids.iter().zip(&blobs) {
        assert_eq!(read(&other, *id), *bytes);
    }
}

#[tokio::test]
async fn what_is_there_is_not_moved_again() {
    let fixture = Fixture::start().await;
    let (_folder, here) = new_store();
    let bytes = bytes_of(4 << 20, 1);
    let id = here.put_bytes(&bytes).unwrap();
    fixture.there.put_bytes(&bytes).unwrap();
    let before = fixture.network.passed();
    let mut told = 0;
    assert_eq!(fixture.client.put(&[id, id], &here, |bytes| told += bytes).await.unwrap(), 0);
    assert_eq!(told, 8 << 20);
    assert_eq!(fixture.client.fetch(id, &here, |bytes| told += bytes).await.unwrap(), 0);
    assert_eq!(told, 12 << 20);
    assert!(fixture.network.passed() - before < 4096, "{} bytes", fixture.network.passed() - before);
}

#[tokio::test]
async fn a_put_that_breaks_off_goes_on_where_it_was() {
    let fixture = Fixture::start().await;
    let (_folder, here) = new_store();
    let bytes = bytes_of(12 << 20, 2);
    let id = here.put_bytes(&bytes).unwrap();
    fixture.network.break_after(6 << 20);
    let error = fixture.client.put(&[id], &here, |_| {}).await.unwrap_err();
    assert!(error.is_retriable(), "{error}");
    assert!(!fixture.there.has(id));

    // The same client, over a new connection by itself.
    let mut told = 0;
    let moved = fixture.client.put(&[id], &here, |bytes| told += bytes).await.unwrap();
    assert!(moved > 0 && moved < 9 << 20, "{moved} bytes were sent again");
    assert_eq!(told, 12 << 20);
    assert_eq!(read(&fixture.there, id), bytes);
    assert_eq!(fixture.there.partials(), []);
}

#[tokio::test]
async fn a_fetch_that_breaks_off_goes_on_where_it_was() {
    let fixture = Fixture::start().await;
    let (folder, here) = new_store();
    let bytes = bytes_of(12 << 20, 3);
    let id = fixture.there.put_bytes(&bytes).unwrap();
    fixture.network.break_after(6 << 20);
    let error = fixture.client.fetch(id, &here, |_| {}).await.unwrap_err();
    assert!(error.is_retriable(), "{error}");
    assert!(!here.has(id));

    // Not even a restart loses what has come.
    drop(here);
    let here = BlobStore::open(folder.path(), NO_WATERMARK).unwrap();
    let mut told = 0;
    let moved = fixture.client.fetch(id, &here, |bytes| told += bytes).await.unwrap();
    assert!(moved > 0 && moved < 9 << 20, "{moved} bytes were fetched again");
    assert_eq!(told, 12 << 20);
    assert_eq!(read(&here, id), bytes);
}

#[tokio::test]
async fn a_fetch_that_is_given_up_goes_on_where_it_was() {
    let fixture = Fixture::start().await;
    let (_folder, here) = new_store();
    let bytes = bytes_of(12 << 20, 4);
    let id = fixture.there.put_bytes(&bytes).unwrap();
    let enough = Arc::new(Notify::new());
    let mut told = 0;
    let on_bytes = |bytes| {
        told += bytes;
        if told >= 4 << 20 {
            enough.notify_one();
        }
    };
    tokio::select! {
        biased;
        () = enough.notified() => {}
        _ = fixture.client.fetch(id, &here, on_bytes) => panic!("it was to be given up before its end"),
    }
    let moved = fixture.client.fetch(id, &here, |_| {}).await.unwrap();
    assert!(moved <= 8 << 20, "{moved} bytes were fetched again");
    assert_eq!(read(&here, id), bytes);
}

#[tokio::test]
async fn only_the_gaps_are_moved() {
    let fixture = Fixture::start().await;
    let (_folder, here) = new_store();
    let bytes = bytes_of(10 * PIECE, 5);
    let manifest = PieceManifest::of_bytes(&bytes);
    let leave_some = |store: &BlobStore| {
        let writer = store.writer(manifest.clone()).unwrap();
        for index in [1, 2, 5, 9] {
            let range = manifest.piece_range(index).unwrap();
            writer.write_piece(index, &bytes[range.start as usize..range.end as usize]).unwrap();
        }
    };
    let id = fixture.there.put_bytes(&bytes).unwrap();
    leave_some(&here);
    assert_eq!(fixture.client.fetch(id, &here, |_| {}).await.unwrap(), 6 * PIECE as u64);

    fixture.there.remove(id).unwrap();
    leave_some(&fixture.there);
    assert_eq!(fixture.client.put(&[id], &here, |_| {}).await.unwrap(), 6 * PIECE as u64);
    assert_eq!(read(&fixture.there, id), bytes);
}

#[tokio::test]
async fn thousands_of_small_blobs_go_in_one_stream() {
    const COUNT: u64 = 2000;
    let fixture = Fixture::start().await;
    let (_folder, here) = new_store();
    let blobs: Vec<Vec<u8>> = (0..COUNT).map(|seed| bytes_of(1000 + seed as usize, seed)).collect();
    let ids = here.put_many(&blobs).unwrap();
    let begun = Instant::now();
    fixture.client.put(&ids, &here, |_| {}).await.unwrap();
    let (put, begun) = (begun.elapsed(), Instant::now());
    assert_eq!(fixture.there.list().len(), COUNT as usize);
    let (_folder, other) = new_store();
    fixture.client.fetch_all(&ids, &other, |_| {}).await.unwrap();
    let fetched = begun.elapsed();
    assert_eq!(other.list(), fixture.there.list());
    println!("{COUNT} blobs: put in {put:?}, fetched in {fetched:?}");
    assert!(put.as_secs() < 60 && fetched.as_secs() < 60, "put in {put:?}, fetched in {fetched:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_under_a_limit_are_together_no_faster() {
    let fixture = Fixture::start().await;
    let blobs: Vec<BlobId> =
        (0..4).map(|seed| fixture.there.put_bytes(&bytes_of(4 * PIECE, seed)).unwrap()).collect();
    let (_folder, here) = new_store();
    let limited = fixture.client.clone().limited_to(RateLimit::new(Some(2 << 20)));
    let start = Instant::now();
    limited.fetch_all(&blobs, &here, |_| {}).await.unwrap();
    let took = start.elapsed().as_secs_f64();
    // A megabyte less what may come at once, and the last piece of each that need not be waited for.
    assert!(took > 0.5 - 0.05 - 0.13, "16 pieces came in {took} s");
    assert!(blobs.iter().all(|blob| here.has(*blob)));
}

#[tokio::test]
async fn two_may_send_the_same_at_once() {
    let fixture = Fixture::start().await;
    let (_folder, here) = new_store();
    let bytes = bytes_of(4 << 20, 6);
    let id = here.put_bytes(&bytes).unwrap();
    let ids = [id];
    let (one, two) =
        tokio::join!(fixture.client.put(&ids, &here, |_| {}), fixture.client.put(&ids, &here, |_| {}));
    assert_eq!(one.unwrap() + two.unwrap(), 4 << 20, "the second waits and finds it there");
    assert_eq!(read(&fixture.there, id), bytes);
}

#[tokio::test]
async fn damage_on_the_other_side_is_not_passed_on() {
    let fixture = Fixture::start().await;
    let (_folder, here) = new_store();
    let id = fixture.there.put_bytes(&bytes_of(5 * PIECE, 7)).unwrap();
    let path = fixture.there.verified_path(id).unwrap();
    let mut damaged = fs::read(&path).unwrap();
    damaged[3 * PIECE] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, damaged).unwrap();
    let error = fixture.client.fetch(id, &here, |_| {}).await.unwrap_err();
    assert!(matches!(error, TransferError::Call(CallError::Failed(_))), "{error:?}");
    assert!(error.to_string().contains("is damaged on this disk"), "{error}");
    assert!(!here.has(id) && !fixture.there.has(id));
    let error = fixture.client.fetch(id, &here, |_| {}).await.unwrap_err();
    assert!(matches!(error, TransferError::Call(CallError::NotFound(_))), "{error:?}");
}

#[tokio::test]
async fn a_full_store_says_so() {
    let limits = BlobLimits { quota_bytes: Some(100_000), free_bytes_min: 0 };
    let fixture = Fixture::start_with(limits).await;
    let (_folder, here) = new_store();
    for size in [PIECE, 10 * PIECE] {
        let ids = [here.put_bytes(&bytes_of(size, 8)).unwrap(), here.put_bytes(&bytes_of(size, 9)).unwrap()];
        let error = fixture.client.put(&ids, &here, |_| {}).await.unwrap_err();
        assert!(matches!(error, TransferError::Call(CallError::Full(_))), "{error:?}");
        assert!(error.to_string().contains("of 100000 bytes"), "{error}");
    }
    assert!(fs::read_dir(fixture.folder.path().join("partial")).unwrap().next().is_none());
}

#[tokio::test]
async fn a_dataset_goes_from_files_to_the_other_side() {
    let fixture = Fixture::start().await;
    let folder = tempfile::tempdir().unwrap();
    let files = [("a.md", 10), ("b/c.md", 3 * PIECE), ("d.md", 0), ("e.md", 3 * PIECE)];
    fs::create_dir(folder.path().join("b")).unwrap();
    for (name, size) in files {
        fs::write(folder.path().join(name), bytes_of(size, size as u64)).unwrap();
    }
    let data = DataSpec { paths: vec![folder.path().to_owned()], include: vec![] };
    let scan = scan(&data).unwrap();
    let mut told = 0;
    let name = Name::from_lossy("notes");
    let (manifest, sources) = hash_scan(&scan, &name, |bytes| told += bytes).unwrap();
    assert_eq!(told, 6 * PIECE as u64 + 10);
    assert_eq!(manifest.corpus_bytes(), scan.corpus_bytes());
    assert_eq!(manifest.files()[1].blob, manifest.files()[3].blob, "the same bytes are the same blob");

    let mut told = 0;
    let moved = fixture.client.put_files(&sources, |bytes| told += bytes).await.unwrap();
    assert_eq!((moved, told), (3 * PIECE as u64 + 10, 6 * PIECE as u64 + 10));
    let ids: Vec<BlobId> = manifest.files().iter().map(|file| file.blob).collect();
    assert_eq!(fixture.client.missing(&ids).await.unwrap(), []);

    // Files that do not keep still.
    fs::write(folder.path().join("a.md"), "another").unwrap();
    let error = hash_scan(&scan, &name, |_| {}).unwrap_err();
    assert!(
        matches!(&error, HashError::Dataset(DatasetError::Changed { expected: 10, found: 7, .. })),
        "{error}"
    );
    fixture.there.remove(ids[0]).unwrap();
    let error = fixture.client.put_files(&sources, |_| {}).await.unwrap_err();
    let path: PathBuf = folder.path().join("a.md");
    assert!(matches!(&error, TransferError::Changed { path: changed } if *changed == path), "{error}");
    assert!(!fixture.there.has(ids[0]));
}

#[tokio::test]
async fn what_is_not_here_cannot_be_sent() {
    let fixture = Fixture::start().await;
    let (_folder, here) = new_store();
    let id = PieceManifest::of_bytes(b"nowhere").id();
    let error = fixture.client.put(&[id], &here, |_| {}).await.unwrap_err();
    assert!(matches!(error, TransferError::Blob(BlobError::NotFound { .. })), "{error:?}");
}
