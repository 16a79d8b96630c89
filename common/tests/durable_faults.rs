//! A write that is stopped between any two of its steps leaves the old file or the new one, whole.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::{fs, path::Path};

use hatchery_common::{
    blob::{BlobLimits, BlobStore, PieceManifest},
    durable,
};

const STEPS: [&str; 3] = ["durable::before_sync", "durable::before_rename", "durable::before_folder_sync"];

fn with_fault<T>(step: &str, act: impl FnOnce() -> T) -> T {
    fail::cfg(step, "1*return").unwrap();
    let result = act();
    fail::remove(step);
    result
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

#[test]
fn every_step_may_fail() {
    let _scenario = fail::FailScenario::setup();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for step in STEPS {
        durable::write_atomically(&path, b"old").unwrap();
        let error = with_fault(step, || durable::write_atomically(&path, b"new")).unwrap_err();
        assert!(error.to_string().contains("injected fault"), "{error}");
        let expected = if step == "durable::before_folder_sync" { "new" } else { "old" };
        assert_eq!(fs::read_to_string(&path).unwrap(), expected, "{step}");
        assert_eq!(names(folder.path()), ["file"], "{step}");
    }

    let limits = BlobLimits { quota_bytes: None, free_bytes_min: 0 };
    for step in STEPS {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path(), limits).unwrap();
        with_fault(step, || store.put_bytes(b"bytes")).unwrap_err();
        assert!(store.list().is_empty() && names(&folder.path().join("partial")).is_empty(), "{step}");
        let id = BlobStore::open(folder.path(), limits).unwrap().put_bytes(b"bytes").unwrap();

        let manifest = PieceManifest::of_bytes(b"other");
        let writer = store.writer(manifest.clone()).unwrap();
        writer.write_piece(0, b"other").unwrap();
        with_fault(step, || writer.finish()).unwrap_err();
        assert!(!store.has(manifest.id()), "{step}");
        let store = BlobStore::open(folder.path(), limits).unwrap();
        assert!(store.has(id), "{step}");
        if !store.has(manifest.id()) {
            let writer = store.writer(manifest.clone()).unwrap();
            if !writer.missing().is_empty() {
                writer.write_piece(0, b"other").unwrap();
            }
            writer.finish().unwrap();
        }
        assert_eq!(store.read_piece(manifest.id(), 0).unwrap(), b"other", "{step}");
    }
}
