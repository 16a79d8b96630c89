use super::*;
use hatchery_common::{
    blob::BlobLimits,
    checkpoint::SERVING_FILE,
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

/// A checkpoint that has weights for replicas that only answer, and its blobs in the store.
fn with_serving(blobs: &BlobStore) -> Arc<CheckpointManifest> {
    let mut manifest = manifest(blobs);
    let bytes = b"bf16";
    let blob = blobs.put_bytes(bytes).unwrap();
    manifest.files.push(CheckpointFile {
        name: SERVING_FILE.to_owned(),
        blob,
        size_bytes: bytes.len() as u64,
    });
    manifest.check().unwrap();
    Arc::new(manifest)
}

/// Puts what a checkpoint is made of into the store.
fn put_all(blobs: &BlobStore) {
    for name in CheckpointManifest::FILES {
        blobs.put_bytes(name.as_bytes()).unwrap();
    }
}

fn names(store: &CheckpointStore, id: CheckpointId) -> Vec<String> {
    let entries = std::fs::read_dir(store.path(id)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn weights(store: &CheckpointStore, id: CheckpointId) -> String {
    std::fs::read_to_string(store.path(id).join(MODEL_FILE)).unwrap()
}

const SERVING: [&str; 3] = ["config.json", "manifest.json", MODEL_FILE];

#[test]
fn a_serving_only_checkpoint_has_two_files_and_becomes_whole_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let manifest = with_serving(store.blobs());
    let id = manifest.id();
    store.install(&manifest, ReplicaForm::ServingOnly).unwrap();
    assert_eq!(
        (names(&store, id), weights(&store, id).as_str()),
        (SERVING.map(str::to_owned).to_vec(), "bf16")
    );
    let own = manifest.files_in(ReplicaForm::ServingOnly).map(|(_, file)| file.blob);
    assert_eq!(store.blobs_held(id), own.collect::<Vec<_>>());
    assert_eq!(store.blobs().list().len(), 2, "what belongs to the other form is not kept");
    drop(store);

    // It was on the way to being whole when the machine lost its power: all is there but the weights.
    for file in &manifest.files {
        let path = folder.path().join("checkpoints").join(id.to_string()).join(&file.name);
        if !path.exists() {
            std::fs::write(path, "x".repeat(file.size_bytes as usize)).unwrap();
        }
    }
    let store = open(folder.path());
    assert_eq!(store.form(id), Some(ReplicaForm::ServingOnly));
    assert_eq!(names(&store, id), SERVING);
    put_all(store.blobs());
    store.install(&manifest, ReplicaForm::Whole).unwrap();
    assert_eq!((store.form(id), weights(&store, id).as_str()), (Some(ReplicaForm::Whole), MODEL_FILE));
    assert_eq!((names(&store, id).len(), store.blobs_held(id).len()), (6, 5));
    // Whoever needs less is served by it as it is.
    store.install(&manifest, ReplicaForm::ServingOnly).unwrap();
    assert_eq!(store.form(id), Some(ReplicaForm::Whole));
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.form(id), Some(ReplicaForm::Whole));
    store.remove(id).unwrap();
    assert_eq!((store.folder(id), store.blobs().used_bytes()), (None, 0));
}

#[test]
fn a_serving_only_checkpoint_that_cannot_become_whole_stays_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let manifest = with_serving(store.blobs());
    let id = manifest.id();
    store.install(&manifest, ReplicaForm::ServingOnly).unwrap();
    put_all(store.blobs());
    store.begin(id, &manifest, ReplicaForm::Whole);
    store.blobs().remove(manifest.files[3].blob).unwrap();
    assert!(store.install(&manifest, ReplicaForm::Whole).is_err());
    assert_eq!(
        (store.form(id), names(&store, id)),
        (Some(ReplicaForm::ServingOnly), SERVING.map(str::to_owned).to_vec())
    );
    assert_eq!((store.begun(), store.blobs().list().len()), (vec![id], 4));
    // The attempt that needed it is over.
    store.discard_given_up().unwrap();
    assert_eq!((store.begun(), store.blobs().list().len()), (vec![], 2));
    store.install(&manifest, ReplicaForm::ServingOnly).unwrap();

    // What is whole and damaged comes again as what is needed here.
    put_all(store.blobs());
    store.install(&manifest, ReplicaForm::Whole).unwrap();
    store.forget_all_with(manifest.files[2].blob).unwrap();
    assert_eq!((store.form(id), store.begun()), (None, vec![id]));
    store.install(&manifest, ReplicaForm::ServingOnly).unwrap();
    assert_eq!((store.begun(), store.blobs().list().len()), (vec![], 2));
}
