//! A history that an older version wrote, with every kind of event, opens, replays and checks clean.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

use std::{collections::BTreeSet, fs, path::Path};

use hatchery_common::{time::Timestamp, tls::Authority};
use hatchery_coordinator::{
    admin::{FindingKind, fsck},
    store::{SqliteStore, Store},
};
use hatchery_scheduler::{Cluster, restored, violations};

/// Written by commit 4abb34a: random steps of the scheduler's tests, and a few more for the kinds that they left out. The
/// bodies of some kinds have no time of their own.
const HISTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/history.db");
/// The kinds of events that version knew.
const KINDS: usize = 27;

/// What a check of the folder finds, but for the blobs, which are not there.
fn findings(state: &Path) -> Vec<FindingKind> {
    let report = fsck(state, false, &mut ()).unwrap();
    let kinds = report.findings.iter().map(|finding| finding.kind);
    kinds.filter(|kind| *kind != FindingKind::BlobMissing).collect()
}

#[test]
fn a_history_of_an_older_version_replays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hatchery.db");
    fs::copy(HISTORY, &path).unwrap();
    Authority::create_or_load(&folder.path().join("authority")).unwrap();
    assert_eq!(findings(folder.path()), [FindingKind::FormatOlder]);

    let mut store = SqliteStore::open(&path).unwrap();
    let before = store.load().unwrap();
    assert_eq!(violations(&before), []);
    let events = store.events(0, usize::MAX).unwrap();
    let kinds: BTreeSet<_> = events.iter().map(|stored| stored.event.what.kind()).collect();
    assert_eq!(kinds.len(), KINDS, "{kinds:?}");
    let mut replayed = Cluster::default();
    for stored in &events {
        replayed.evolve(&stored.event);
    }
    assert_eq!(replayed, before);

    // It goes on from there.
    let last = events.last().unwrap().event.at;
    let more = restored(&before, last, Timestamp(last.0 + 1));
    store.commit(&more).unwrap();
    for event in &more {
        replayed.evolve(event);
    }
    assert_eq!(store.load().unwrap(), replayed);
    drop(store);
    assert_eq!(findings(folder.path()), []);
}
