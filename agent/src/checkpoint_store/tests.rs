use super::*;
use hatchery_common::{
    blob::BlobLimits,
    id::{Epoch, JobId},
    model::{ModelConfig, RawModelConfig},
    trainer::Metrics,
};

fn open(folder: &Path) -> CheckpointStore {
    let (blobs, checkpoints) = (folder.join("blobs"), folder.join("checkpoints"));
    for path in [&blobs, &checkpoints] {
        std::fs::create_dir_all(path).unwrap();
    }
    let blobs = BlobStore::open(&blobs, BlobLimits { free_bytes_min: 0, ..Default::default() }).unwrap();
    CheckpointStore::open(&checkpoints, blobs).unwrap()
}

/// A checkpoint whose files have their names as bytes.
fn manifest(blobs: &BlobStore) -> CheckpointManifest {
    let files = CheckpointManifest::FILES.iter().map(|name| CheckpointFile {
        name: (*name).to_owned(),
        blob: blobs.put_bytes(name.as_bytes()).unwrap(),
        size_bytes: name.len() as u64,
    });
    CheckpointManifest {
        job: JobId::random(),
        epoch: Epoch(1),
        step: 1,
        parent: None,
        dataset: "0".repeat(64).parse().unwrap(),
        model: ModelConfig::new(RawModelConfig::default()).unwrap(),
        block: 8,
        metrics: Metrics::default(),
        files: files.collect(),
    }
}

#[test]
fn a_bit_that_flips_in_a_shared_blob_is_found_for_all_that_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (one, other) = (Arc::new(manifest(store.blobs())), Arc::new(manifest(store.blobs())));
    let name = CheckpointManifest::FILES[1];
    let path = |manifest: &CheckpointManifest| store.path(manifest.id()).join(name);
    store.install(&one, ReplicaForm::Whole).unwrap();
    store.install(&other, ReplicaForm::Whole).unwrap();
    let flip = |path: &Path| {
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
        std::fs::write(path, name.replace('m', "n")).unwrap();
    };
    flip(&path(&one));
    assert!(matches!(
        store.install(&one, ReplicaForm::Whole),
        Err(CheckpointStoreError::Blob(BlobError::Corrupt { .. }))
    ));
    assert_eq!(store.ids(), [], "both are links to the same bytes");

    // The blob comes again, and a folder still has what stood there before.
    store.blobs().put_bytes(name.as_bytes()).unwrap();
    store.install(&one, ReplicaForm::Whole).unwrap();
    store.install(&other, ReplicaForm::Whole).unwrap();
    std::fs::remove_file(path(&other)).unwrap();
    std::fs::write(path(&other), name.replace('m', "n")).unwrap();
    store.install(&other, ReplicaForm::Whole).unwrap();
    assert_eq!(std::fs::read_to_string(path(&other)).unwrap(), name);
}

#[test]
fn with_a_fetch_that_was_given_up_all_of_it_goes_that_nobody_needs() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let blobs = store.blobs();
    let half = Arc::new(manifest(blobs));
    let large = PieceManifest::of_bytes(&vec![7; 3 << 20]);
    let mut given_up = CheckpointManifest { step: 2, ..CheckpointManifest::clone(&half) };
    given_up.files[2].blob = large.id();
    let (given_up, id) = (Arc::new(given_up.clone()), given_up.id());
    store.begin(id, &given_up, ReplicaForm::Whole);
    assert_eq!((store.begun(), store.ids()), (vec![id], vec![]));
    let pins = store.pin(vec![half.files[0].blob]);
    let writer = blobs.writer(large).unwrap();
    let error = store.remove(id).unwrap_err();
    assert!(matches!(error, CheckpointStoreError::Blob(BlobError::Busy { .. })), "{error}");
    drop(writer);
    store.remove(id).unwrap();
    assert_eq!((store.begun(), blobs.partials()), (vec![], vec![]));
    let left: Vec<BlobId> = blobs.list().iter().map(|blob| blob.id).collect();
    let mut needed = vec![half.files[0].blob, half.files[2].blob];
    needed.sort();
    assert_eq!(left, needed, "what is at work, and what the checkpoint does not name");

    assert!(store.make_room().unwrap());
    assert_eq!(blobs.list().len(), 1);
    drop(pins);
    assert!(store.make_room().unwrap() && blobs.used_bytes() == 0);
    assert!(!store.make_room().unwrap());
}

#[test]
fn many_may_install_one_checkpoint_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let manifest = Arc::new(manifest(store.blobs()));
    let (id, checkpoints) = (manifest.id(), folder.path().join("checkpoints"));
    for _ in 0..20 {
        let _pins = store.pin(manifest.files.iter().map(|file| file.blob).collect());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| store.install(&manifest, ReplicaForm::Whole).unwrap());
            }
        });
        assert!(manifest.files.iter().all(|file| store.folder(id).unwrap().0.join(&file.name).is_file()));
        store.remove(id).unwrap();
        assert!(store.folder(id).is_none() && !checkpoints.join(id.to_string()).exists());
    }
}
