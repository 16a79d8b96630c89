//! The store against the scheduler's random histories, and against files that are not as they should be.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "shared with the scheduler's own tests")]
#[path = "../../scheduler/tests/world/mod.rs"]
mod world;

use std::{fs, io::Write as _, path::Path};

use hatchery_common::{id::Epoch, recipe::DeviceWishes};
use hatchery_coordinator::store::{SqliteStore, Store, StoreError};
use hatchery_scheduler::{Cluster, Event, JobPhase, What};
use proptest::prelude::*;
use world::{World, steps};

/// Histories in `cargo test`; `PROPTEST_CASES` asks for more.
const CASES: u32 = 40;
/// Steps in a history.
const STEPS_MAX: usize = 80;

fn open(folder: &Path) -> SqliteStore {
    SqliteStore::open(&folder.join("hatchery.db")).unwrap()
}

fn evolve(cluster: &mut Cluster, events: &[Event]) {
    for event in events {
        cluster.evolve(event);
    }
}

fn replayed(store: &mut SqliteStore) -> Cluster {
    let mut cluster = Cluster::default();
    loop {
        // In small portions, as a watcher who catches up reads them.
        let events = store.events(cluster.last_event, 7).unwrap();
        for event in &events {
            assert_eq!(event.seq, cluster.last_event + 1, "no event is left out");
            cluster.evolve(&event.event);
        }
        if events.is_empty() {
            return cluster;
        }
    }
}

fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(CASES), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn tables_events_and_memory_agree(history in steps(STEPS_MAX)) {
        let mut world = World::new();
        for step in &history {
            world.step(step);
        }
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let mut memory = Cluster::default();
        for batch in &world.batches {
            store.commit(batch).unwrap();
            evolve(&mut memory, batch);
        }
        prop_assert_eq!(&store.load().unwrap(), &memory);
        drop(store);
        let mut store = open(folder.path());
        prop_assert_eq!(&store.load().unwrap(), &memory);
        prop_assert_eq!(&replayed(&mut store), &memory);
        prop_assert_eq!(memory, world.cluster);
    }
}

/// A node and a job that runs on it, stored.
fn running(store: &mut SqliteStore) -> (World, hatchery_common::id::JobId) {
    let mut world = World::new();
    world.join("cpu", &[(hatchery_common::device::Device::CPU, None)]);
    let job = world.submit(100, DeviceWishes::default());
    world.plan();
    for batch in &world.batches {
        store.commit(batch).unwrap();
    }
    (world, job)
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    let (mut world, job) = running(&mut store);
    let before = store.load().unwrap();
    assert_eq!(before, world.cluster);

    let (running, at) = (world.job(job).clone(), world.now.wall);
    let other = world.submit(100, DeviceWishes::default());
    let good = world.batches.last().unwrap()[0].clone();
    let commit = |epoch, step| {
        What::CheckpointCommitted {
            late: false,
            self_test: None,
            manifest: Box::new(world::checkpoint(&running, Epoch(epoch), step)),
        }
        .at(at)
    };
    let lease = |job, epoch| {
        What::LeaseGranted { job, epoch: Epoch(epoch), lease: running.lease.clone().unwrap() }.at(at)
    };
    let why = hatchery_scheduler::LeaseEnd::NodeLost;
    let ends =
        |epoch| What::LeaseEnded { job, epoch: Epoch(epoch), why: why.clone(), not_before: None }.at(at);
    let cancelled = What::JobEnded { job, phase: JobPhase::Cancelled }.at(at);
    let wrong: Vec<(&str, Vec<Event>)> = vec![
        ("a checkpoint of an epoch to come", vec![commit(2, 10)]),
        ("a checkpoint of an epoch gone", vec![ends(1), lease(job, 2), commit(1, 10)]),
        ("a checkpoint that goes back", vec![commit(1, 10), commit(1, 9)]),
        ("a checkpoint after the end", vec![cancelled.clone(), commit(1, 10)]),
        ("a second lease", vec![lease(job, 2)]),
        ("a lease whose epoch leaps", vec![ends(1), lease(job, 3)]),
        ("a device given twice", vec![good.clone(), lease(other, 1)]),
        ("the end of another epoch", vec![ends(2)]),
        ("a second end", vec![cancelled.clone(), cancelled]),
        ("the same job twice", vec![good.clone(), good.clone()]),
    ];
    for (what, events) in wrong {
        match store.commit(&events) {
            Err(StoreError::Stale { kind, .. }) => {
                assert_eq!(kind, events.last().unwrap().what.kind(), "{what}");
            }
            answer => panic!("{what}: {answer:?}"),
        }
        assert_eq!(store.load().unwrap(), before, "{what}: nothing of it is left");
    }
    store.commit(&[good]).unwrap();
    assert_eq!(store.load().unwrap(), world.cluster, "the store goes on");
    assert_eq!(replayed(&mut store), world.cluster);
}

#[test]
fn a_full_disk_loses_nothing_and_can_be_mended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hatchery.db");
    let mut store = SqliteStore::open_bounded(&path, 200_000).unwrap();
    let mut world = World::new();
    let (mut kept, mut refused) = (Cluster::default(), None);
    for _ in 0..1000 {
        world.submit(100, DeviceWishes::default());
        for batch in world.batches.drain(..) {
            match store.commit(&batch) {
                Ok(()) => evolve(&mut kept, &batch),
                Err(error) => refused = Some((batch, error)),
            }
        }
        if refused.is_some() {
            break;
        }
    }
    let (batch, error) = refused.expect("the file grew beyond its limit");
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("free some space and try again"), "{error}");
    assert_eq!(store.load().unwrap(), kept);
    drop(store);
    let mut store = SqliteStore::open(&path).unwrap();
    store.commit(&batch).unwrap();
    assert_eq!(store.load().unwrap(), world.cluster);
}

#[test]
fn a_newer_format_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let path = folder.path().join("hatchery.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let before = fs::read(&path).unwrap();
    let error = SqliteStore::open(&path).err().unwrap();
    assert!(matches!(error, StoreError::TooNew { found: 99, .. }), "{error:?}");
    assert!(error.to_string().contains("format 99, but this version reads formats up to 5"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_damaged_file_is_named_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hatchery.db");
    running(&mut open(folder.path()));
    let whole = fs::read(&path).unwrap();
    let page_bytes = 4096;
    assert!(whole.len() > 10 * page_bytes, "closing has brought the log into the file");
    for (what, bytes) in [
        (
            "no database at all",
            b"a letter to my grandmother, which is long enough to have a header".repeat(99),
        ),
        (
            "pages overwritten",
            [&whole[..2 * page_bytes], &vec![0xA5; 8 * page_bytes], &whole[10 * page_bytes..]].concat(),
        ),
        ("cut short", whole[..4 * page_bytes].to_vec()),
    ] {
        fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
        let error = SqliteStore::open(&path).err().unwrap_or_else(|| panic!("{what}: it opened"));
        assert!(matches!(error, StoreError::Corrupt { .. }), "{what}: {error:?}");
        let text = error.to_string();
        assert!(text.contains("hatchery.db is damaged") && text.contains("backup"), "{what}: {text}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{what}");
    }
}

#[test]
fn a_row_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path());
    running(&mut store);
    let other = rusqlite::Connection::open(folder.path().join("hatchery.db")).unwrap();
    other.execute("UPDATE jobs SET phase = 'asleep'", []).unwrap();
    let error = store.load().unwrap_err().to_string();
    assert!(error.contains("table jobs") && error.contains("there is no phase `asleep`"), "{error}");
    let error = other.execute("DELETE FROM events", []).unwrap_err().to_string();
    assert!(error.contains("append-only"), "{error}");
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = SqliteStore::open(&folder.path().join("none/hatchery.db")).err().unwrap().to_string();
    assert!(error.contains("none/hatchery.db") && error.contains("check that the folder exists"), "{error}");
}
