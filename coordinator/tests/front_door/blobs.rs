//! Blobs over the wire, on a disk that is full or lies.

use std::path::{Path, PathBuf};

use hatchery_common::blob::{BlobLimits, BlobStore};
use hatchery_net::{Connect, transfer::BlobClient};

use crate::fixture::{Fixture, soon};

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

fn store(folder: &Path) -> BlobStore {
    BlobStore::open(folder, BlobLimits { free_bytes_min: 0, ..BlobLimits::default() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_the_coordinator_lives_on() {
    let fixture = Fixture::start_with(|settings| settings.disk_free_bytes_min = u64::MAX / 2).await;
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let blob = store.put_bytes(&vec![7; 100_000]).unwrap();
    let client = soon(BlobClient::connect(&fixture.credentials())).await.unwrap();
    let error = soon(client.put(&[blob], &store, |_| {})).await.unwrap_err().to_string();
    assert!(error.contains("too full"), "{error}");
    assert_eq!(soon(client.missing(&[blob])).await.unwrap(), [blob]);
    soon(fixture.fleet().await.status()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_is_never_given_out_and_can_be_put_again() {
    let fixture = Fixture::start().await;
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, target) = (store(here.path()), store(there.path()));
    let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let blob = source.put_bytes(&bytes).unwrap();
    let client = soon(BlobClient::connect(&fixture.credentials())).await.unwrap();
    soon(client.put(&[blob], &source, |_| {})).await.unwrap();

    let name = format!("{blob}.data");
    let blobs = fixture.state().join("blobs");
    let file = files_below(&blobs).into_iter().find(|path| path.ends_with(&name)).unwrap();
    let mut damaged = std::fs::read(&file).unwrap();
    damaged[200_000] ^= 1;
    std::fs::write(&file, damaged).unwrap();
    soon(client.fetch(blob, &target, |_| {})).await.unwrap_err();
    assert!(!target.has(blob));
    assert_eq!(soon(client.missing(&[blob])).await.unwrap(), [blob], "it is known to be missing");

    soon(client.put(&[blob], &source, |_| {})).await.unwrap();
    soon(client.fetch(blob, &target, |_| {})).await.unwrap();
    assert!(target.has(blob));
}
