//! I11: what nothing names goes; what is named, read, brought or asked for stays.

use std::{num::NonZeroU32, time::Duration};

use hatchery_common::{
    blob::{BlobLimits, BlobStore, PieceManifest},
    id::{BlobId, RequestId},
    recipe::RetainPolicy,
};
use hatchery_net::{Connect, transfer::BlobClient};

use crate::{
    agent::Agent,
    fixture::{Fixture, soon, spec},
};

/// How often it is looked at whether something has gone.
const LOOK_EVERY: Duration = Duration::from_millis(50);

async fn put(fixture: &Fixture, store: &BlobStore, bytes: &[u8]) -> BlobId {
    let blob = store.put_bytes(bytes).unwrap();
    let client = soon(BlobClient::connect(&fixture.credentials())).await.unwrap();
    soon(client.put(&[blob], store, |_| {})).await.unwrap();
    blob
}

/// Waits until the coordinator keeps so many blobs; `meanwhile` is asked for all the time.
async fn until_blobs(fixture: &Fixture, count: u64, meanwhile: Option<BlobId>) {
    let fleet = fixture.fleet().await;
    let client = soon(BlobClient::connect(&fixture.credentials())).await.unwrap();
    soon(async {
        loop {
            if let Some(blob) = meanwhile {
                assert_eq!(
                    client.missing(&[blob]).await.unwrap(),
                    [],
                    "it was asked for, so it is counted on"
                );
            }
            if fleet.status().await.unwrap().blobs.count == count {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_nothing_names_go_after_the_grace_and_no_others() {
    let fixture = Fixture::start_with(|settings| settings.collect_grace_secs = 1).await;
    fixture.dataset().await;
    let folder = tempfile::tempdir().unwrap();
    let store =
        BlobStore::open(folder.path(), BlobLimits { free_bytes_min: 0, ..Default::default() }).unwrap();
    put(&fixture, &store, &[1; 1000]).await;
    let waiting = put(&fixture, &store, &[2; 2000]).await;
    let blobs = soon(fixture.fleet().await.status()).await.unwrap().blobs;
    assert_eq!((blobs.count, blobs.unreferenced_bytes), (3, 3000), "what would go is told");
    until_blobs(&fixture, 2, Some(waiting)).await;
    until_blobs(&fixture, 1, None).await;
    let blobs = soon(fixture.fleet().await.status()).await.unwrap().blobs;
    assert_eq!(blobs.unreferenced_bytes, 0, "the dataset stays");
}

/// An upload of two pieces that broke off before the coordinator was started again.
async fn break_off_an_upload(fixture: &mut Fixture) {
    fixture.stop().await;
    let limits = BlobLimits { free_bytes_min: 0, ..Default::default() };
    let store = BlobStore::open(&fixture.state().join("blobs"), limits).unwrap();
    drop(store.writer(PieceManifest::of_bytes(&vec![3; 2 << 20])).unwrap());
    drop(store);
    fixture.begin().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_broke_off_is_given_up_after_the_grace() {
    let mut fixture = Fixture::start_with(|settings| settings.collect_grace_secs = 1).await;
    break_off_an_upload(&mut fixture).await;
    let fleet = fixture.fleet().await;
    soon(async {
        while fleet.status().await.unwrap().blobs.bytes > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await;
    assert_eq!(std::fs::read_dir(fixture.state().join("blobs").join("partial")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn within_the_grace_an_upload_waits_for_its_commit() {
    let mut fixture = Fixture::start_with(|settings| settings.collect_grace_secs = 3600).await;
    let folder = tempfile::tempdir().unwrap();
    let store =
        BlobStore::open(folder.path(), BlobLimits { free_bytes_min: 0, ..Default::default() }).unwrap();
    put(&fixture, &store, &[1; 1000]).await;
    break_off_an_upload(&mut fixture).await;
    let blobs = soon(fixture.fleet().await.status()).await.unwrap().blobs;
    assert_eq!((blobs.unreferenced_bytes, blobs.unfinished_bytes), (1000, 2 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_does_not_keep_is_retired_and_its_bytes_go() {
    let fixture = Fixture::start_with(|settings| settings.collect_grace_secs = 1).await;
    let agent = Agent::join(&fixture, "ada").await;
    let mut session = agent.session().await;
    let retain = RetainPolicy { last: NonZeroU32::new(1), every: 0 };
    let fleet = fixture.fleet().await;
    let spec = hatchery_common::recipe::JobSpec { retain, ..spec(fixture.dataset().await) };
    let (job, _) = soon(fleet.submit(RequestId::random(), &spec)).await.unwrap();
    let attempt = session.attempt().await;
    let first = agent.commit(&job, &attempt, 5, None).await.unwrap();
    soon(fleet.pin(&first.to_string(), true)).await.unwrap();
    agent.commit(&job, &attempt, 10, None).await.unwrap();
    let third = agent.commit(&job, &attempt, 15, None).await.unwrap();
    let steps = |views: Vec<hatchery_common::view::CheckpointView>| {
        views.iter().map(|view| view.manifest.step).collect::<Vec<u64>>()
    };
    assert_eq!(steps(soon(fleet.checkpoints(None)).await.unwrap()), [15, 5], "the newest, and the pinned");
    until_blobs(&fixture, 9, None).await;
    let pinned = soon(fleet.pin("latest", true)).await.unwrap();
    assert!(pinned.is_pinned && pinned.id == third);
    soon(fleet.pin(&first.to_string(), false)).await.unwrap();
    assert_eq!(steps(soon(fleet.checkpoints(None)).await.unwrap()), [15]);
    until_blobs(&fixture, 5, None).await;
    let error = soon(fleet.checkpoint(&first.to_string())).await.unwrap_err();
    assert!(error.to_string().contains("there is no"), "{error}");
}
