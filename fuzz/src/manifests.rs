//! Manifests of checkpoints and datasets, and specs of jobs.

use std::path::{Component, Path};

use hatchery_common::{
    checkpoint::{CheckpointFile, CheckpointManifest, ReplicaForm, SERVING_FILE},
    dataset::{DatasetFile, DatasetManifest},
    digest::Digest,
    id::{BlobId, CheckpointId, DatasetId, Epoch, JobId, Name},
    model::{ModelConfig, RawModelConfig},
    recipe::{JobSpec, Reader, Recipe, SPEC_BYTES_MAX},
    trainer::Metrics,
};
use hatchery_proto::convert;

/// A checkpoint's manifest.
pub(crate) fn checkpoint(bytes: &[u8]) -> bool {
    let Ok((id, manifest)) = convert::checkpoint_manifest(bytes) else { return false };
    assert_eq!(convert::checkpoint_manifest_bytes(&manifest), bytes, "a checkpoint has one manifest");
    assert_eq!((id, manifest.id()), (CheckpointId(Digest::of(bytes)), id));
    assert!(bytes.len() <= convert::CHECKPOINT_MANIFEST_BYTES_MAX);
    let names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    assert!(names[..4] == CheckpointManifest::FILES && (names.len() == 4 || names[4..] == [SERVING_FILE]));
    let serving_bytes = manifest.bytes_in(ReplicaForm::ServingOnly);
    assert!((serving_bytes < manifest.size_bytes()) == (names.len() == 5));
    // The sum cannot overflow: that is checked in this build.
    assert!(manifest.size_bytes() >= manifest.files.len() as u64);
    true
}

pub(crate) fn checkpoints() -> Vec<Vec<u8>> {
    let file = |name: &str| CheckpointFile { name: name.into(), blob: blob(name), size_bytes: 9 };
    let first = CheckpointManifest {
        job: JobId::from_bytes([1; 16]),
        epoch: Epoch(1),
        step: 100,
        parent: None,
        dataset: DatasetId(Digest::of(b"")),
        model: ModelConfig::new(RawModelConfig::default()).expect("the default is right"),
        block: 256,
        metrics: Metrics::default(),
        files: CheckpointManifest::FILES.map(file).to_vec(),
    };
    let metrics =
        Metrics { first_loss: Some(5.5), train_loss: Some(1.25), early_stop: Some(3), ..Metrics::default() };
    let second = CheckpointManifest { parent: Some(first.id()), metrics, ..first.clone() };
    let mut third = second.clone();
    third.files.push(CheckpointFile { size_bytes: 5, ..file(SERVING_FILE) });
    [first, second, third].iter().map(convert::checkpoint_manifest_bytes).collect()
}

/// A job's spec.
pub(crate) fn spec(bytes: &[u8]) -> bool {
    // What can be read whole can be read in part, and is the same.
    let in_part = JobSpec::read_in_part(bytes, Reader::CommandLine);
    let Ok(spec) = JobSpec::read(bytes, Reader::Coordinator) else { return false };
    assert_eq!(in_part, Ok((spec.clone(), Vec::new())));
    let written = spec.to_json();
    // With all of its defaults written out it may have become too long.
    if written.len() > SPEC_BYTES_MAX {
        return true;
    }
    let again = JobSpec::read(&written, Reader::Agent).expect("what was written is read again");
    assert_eq!((again.to_json(), again), (written, spec));
    assert!(bytes.len() <= SPEC_BYTES_MAX);
    true
}

pub(crate) fn specs() -> Vec<Vec<u8>> {
    let texts =
        ["", "note = 'a'\n[devices]\nkinds = ['cpu']\nlabels = { room = 'attic' }\n[retain]\nlast = 3"];
    let recipe = |text| Recipe::parse(Some("seed"), text, &[]).expect("the text is a recipe");
    let spec = |text| recipe(text).job(DatasetId(Digest::of(b"")), &Name::from_lossy("a")).to_json();
    texts.map(spec).to_vec()
}

/// A dataset's manifest.
pub(crate) fn dataset(bytes: &[u8]) -> bool {
    let Ok(manifest) = convert::dataset_manifest(bytes) else { return false };
    let written = convert::dataset_manifest_bytes(&manifest);
    let again = convert::dataset_manifest(&written).expect("what was written is read again");
    assert_eq!((&again, again.id()), (&manifest, manifest.id()));
    assert_eq!(convert::dataset_manifest_bytes(&again), written);
    assert!(bytes.len() <= convert::DATASET_MANIFEST_BYTES_MAX);
    for file in manifest.files() {
        let parts = Path::new(&file.path).components().collect::<Vec<_>>();
        let is_plain = |part: &Component| matches!(part, Component::Normal(_));
        assert!(!parts.is_empty() && parts.iter().all(is_plain), "{:?} leads elsewhere", file.path);
    }
    // Neither can this sum overflow.
    assert!(manifest.corpus_bytes() >= manifest.files().len() as u64 - 1);
    true
}

pub(crate) fn datasets() -> Vec<Vec<u8>> {
    let file = |path: &str| DatasetFile { path: path.into(), blob: blob(path), size_bytes: 7 };
    let of = |paths: &[&str]| {
        let files = paths.iter().map(|path| file(path)).collect();
        DatasetManifest::new(Name::from_lossy("text"), files).expect("these paths are plain")
    };
    [of(&["a.txt"]), of(&["a/b/c.md", "a/d.md", "ä/\u{1F409}.txt"])]
        .iter()
        .map(convert::dataset_manifest_bytes)
        .collect()
}

fn blob(text: &str) -> BlobId {
    BlobId(Digest::of(text.as_bytes()))
}
