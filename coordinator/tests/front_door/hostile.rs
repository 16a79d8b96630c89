//! What is described falsely, too large, or by names that lead elsewhere: refused with a reason, and nothing is written
//! anywhere else than it belongs.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use hatchery_common::{
    blob::{BlobLimits, BlobStore},
    checkpoint::{CheckpointFile, CheckpointManifest, SERVING_FILE},
    id::Epoch,
};
use hatchery_net::{
    Connect,
    transfer::BlobClient,
    transport::{Profile, connect},
};
use hatchery_proto::{convert, v1};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    agent::Agent,
    fixture::{Fixture, checkpoint, soon},
};

/// What is changed in a list of files.
type Lie = Box<dyn Fn(&mut Vec<CheckpointFile>)>;

/// Names of files that would lie somewhere else.
const TRICKS: [&str; 7] =
    ["../evil", "/etc/evil", "a/../../evil", "a//evil", "./evil", "..\\evil", "evil\0.txt"];

/// Every file below `folder`, those of the database and of the blobs' own folders left out.
fn others(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_own = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name == "blobs" || name.contains(".sqlite") || name.contains(".db")
    };
    let files = entries.filter(|path| !is_own(path));
    files.flat_map(|path| if path.is_dir() { others(&path) } else { BTreeSet::from([path]) }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_lies_about_its_files_is_refused() {
    let fixture = Fixture::start().await;
    let agent = Agent::join(&fixture, "box").await;
    let mut session = agent.session().await;
    let job = fixture.submit().await;
    let attempt = session.attempt().await;
    let good = checkpoint(&agent.blobs, &job, attempt.id.epoch, 10, None);
    agent.put(&good).await;
    let before = others(fixture.folder.path());

    let renamed = TRICKS.map(|trick| -> (Lie, &str) {
        (Box::new(|files| files[0].name = trick.to_owned()), "must be exactly")
    });
    let serving = |file: &CheckpointFile| CheckpointFile { name: SERVING_FILE.to_owned(), ..file.clone() };
    let others_of_them: [(Lie, &str); 10] = [
        (Box::new(|files| drop(files.pop())), "must be exactly"),
        (Box::new(|files| files.extend_from_within(..1)), "must be exactly"),
        (Box::new(|files| files.swap(0, 1)), "must be exactly"),
        (Box::new(|files| files[1] = files[0].clone()), "must be exactly"),
        (Box::new(|files| files[2].size_bytes = 0), "has 0 bytes"),
        (Box::new(|files| files[2].size_bytes = u64::MAX), "bytes"),
        (Box::new(|files| files[3].size_bytes += 1), "1 of the 4 blobs"),
        (Box::new(move |files| files.push(serving(&files[1]))), "must be smaller"),
        (Box::new(move |files| files.insert(1, serving(&files[0]))), "must be exactly"),
        (Box::new(move |files| files.extend([serving(&files[0]), serving(&files[0])])), "must be exactly"),
    ];
    for (lie, said) in renamed.into_iter().chain(others_of_them) {
        let mut files = good.files.clone();
        lie(&mut files);
        let manifest = CheckpointManifest { files, ..good.clone() };
        let error = soon(agent.client.commit_checkpoint(&manifest, None)).await.unwrap_err().to_string();
        assert!(error.contains(said), "{:?}: {error}", manifest.files);
    }
    let foreign = CheckpointManifest { epoch: Epoch(attempt.id.epoch.0 + 1), ..good.clone() };
    soon(agent.client.commit_checkpoint(&foreign, None)).await.unwrap_err();
    assert_eq!(soon(fixture.fleet().await.checkpoints(None)).await.unwrap(), [], "none of these counts");
    assert_eq!(others(fixture.folder.path()), before, "nothing lies where it does not belong");
    soon(agent.client.commit_checkpoint(&good, None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_that_lies_about_its_files_is_refused() {
    let fixture = Fixture::start().await;
    fixture.dataset().await;
    let fleet = fixture.fleet().await;
    let known = soon(fleet.datasets()).await.unwrap();
    let before = others(fixture.folder.path());
    let store_folder = tempfile::tempdir().unwrap();
    let limits = BlobLimits { free_bytes_min: 0, ..BlobLimits::default() };
    let store = BlobStore::open(store_folder.path(), limits).unwrap();
    let blob = store.put_bytes(&[7; 1000]).unwrap();
    let blobs = soon(BlobClient::connect(&fixture.credentials())).await.unwrap();
    soon(blobs.put(&[blob], &store, |_| {})).await.unwrap();

    let config = fixture.credentials().client_config().unwrap();
    let channel = soon(connect(&fixture.credentials().addresses, config, Profile::Control)).await.unwrap();
    let calls = v1::fleet_client::FleetClient::new(channel);
    let file = |path: &str, size_bytes: u64| json!({ "path": path, "blob": blob, "size_bytes": size_bytes });
    let create = async |files: Vec<Value>| {
        let manifest = serde_json::to_vec(&json!({ "name": "evil", "files": files })).unwrap();
        soon(calls.clone().create_dataset(v1::CreateDatasetRequest { manifest })).await
    };
    for trick in TRICKS.into_iter().chain([""]) {
        let status = create(vec![file(trick, 1000)]).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{trick:?}: {status}");
        assert!(status.message().contains("is not a plain relative path"), "{trick:?}: {status}");
    }
    let cases = [
        (vec![], "1 to"),
        (vec![file("a", 1000), file("a", 1000)], "listed twice"),
        (vec![file("a", 999)], "1 of the 1 blobs"),
        (vec![file("a", u64::MAX)], "more than the limit"),
    ];
    for (files, said) in cases {
        let status = create(files).await.unwrap_err();
        assert!(status.message().contains(said), "{status}");
    }
    assert!(convert::dataset_manifest(&vec![b' '; convert::DATASET_MANIFEST_BYTES_MAX + 1]).is_err());
    assert_eq!(soon(fleet.datasets()).await.unwrap(), known, "none of these counts");
    assert_eq!(others(fixture.folder.path()), before, "nothing lies where it does not belong");
    create(vec![file("a", 1000)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_beyond_the_quota_is_refused_and_leaves_nothing() {
    let fixture = Fixture::start_with(|settings| settings.blob_bytes_max = Some(1 << 20)).await;
    let folder = tempfile::tempdir().unwrap();
    let limits = BlobLimits { free_bytes_min: 0, ..BlobLimits::default() };
    let store = BlobStore::open(folder.path(), limits).unwrap();
    let (small, large) =
        (store.put_bytes(&vec![1; 1000]).unwrap(), store.put_bytes(&vec![2; 2 << 20]).unwrap());
    let client = soon(BlobClient::connect(&fixture.credentials())).await.unwrap();
    let error = soon(client.put(&[large], &store, |_| {})).await.unwrap_err().to_string();
    assert!(error.contains("holds 0 of 1048576 bytes"), "{error}");
    assert_eq!(soon(client.missing(&[large])).await.unwrap(), [large]);
    soon(client.put(&[small], &store, |_| {})).await.unwrap();
    assert_eq!(soon(client.missing(&[small])).await.unwrap(), [], "what fits is still taken");
}
