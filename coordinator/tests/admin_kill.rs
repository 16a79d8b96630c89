//! SIGKILL between every two steps by which a restore or a repair puts something in place.
//!
//! The test starts itself as a child that kills itself before its N-th step. Whatever it left is never taken for what it is
//! not, and the same command once more comes to its end.

#![allow(clippy::unwrap_used, reason = "a test may panic anywhere")]

#[allow(dead_code, unused_imports, reason = "shared with the scheduler's own tests")]
#[path = "../../scheduler/tests/world/mod.rs"]
mod world;

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
};

use hatchery_common::{device::Device, recipe::DeviceWishes, tls::Authority};
use hatchery_coordinator::{
    admin::{self, AdminError, BackupOptions, FindingKind, UNFINISHED_FOLDER},
    store::{SqliteStore, Store},
};
use hatchery_scheduler::{Cluster, Event};
use world::World;

/// Tells the child what to do, where, and how many steps it may take.
const CHILD: &str = "HATCHERY_ADMIN_CHILD";
/// More than this, and the child does not come to an end.
const STEPS_MAX: usize = 100;

/// A state with a job that runs, and `more` that wait.
fn state(folder: &Path, more: usize) {
    let mut world = World::new();
    world.join("cpu", &[(Device::CPU, Some(8e10))]);
    for _ in 0..=more {
        world.submit(300, DeviceWishes::default());
    }
    world.plan();
    fs::create_dir_all(folder).unwrap();
    Authority::create_or_load(&folder.join("authority")).unwrap();
    let mut store = SqliteStore::open(&folder.join("hatchery.db")).unwrap();
    world.batches.iter().for_each(|batch| store.commit(batch).unwrap());
}

fn history(folder: &Path) -> Vec<Event> {
    let mut store = SqliteStore::open(&folder.join("hatchery.db")).unwrap();
    store.events(0, usize::MAX).unwrap().into_iter().map(|event| event.event).collect()
}

fn tables(folder: &Path) -> Cluster {
    SqliteStore::open(&folder.join("hatchery.db")).unwrap().load().unwrap()
}

/// Does `what` in `folder` as a child that may take `steps`; whether it came to its end.
fn child(test: &str, folder: &Path, steps: usize) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{steps} {}", folder.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let killed = output.status.signal() == Some(9);
    assert!(output.status.success() || killed, "{}", String::from_utf8_lossy(&output.stderr));
    !killed
}

/// Does `work` with the folder that the parent named, if this is the child.
fn is_child(work: impl FnOnce(&Path)) -> bool {
    let Ok(order) = std::env::var(CHILD) else { return false };
    let (steps, folder) = order.split_once(' ').unwrap();
    fail::cfg("admin::step", &format!("{steps}*off->return(kill)")).unwrap();
    work(Path::new(folder));
    true
}

#[test]
fn a_restore_that_is_killed_is_never_taken_for_a_state() {
    let file = |folder: &Path| folder.with_file_name("backup.tar");
    if is_child(|folder| drop(admin::restore(&file(folder), folder, true, &mut ()).unwrap())) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let source = root.path().join("source");
    state(&source, 3);
    admin::backup(&source, &file(&source), BackupOptions::default(), &mut ()).unwrap();
    let wanted = history(&source);
    let (mut unfinished, mut old) = (0, 0);
    for steps in 0..STEPS_MAX {
        let folder = root.path().join(format!("to-{steps}"));
        state(&folder, 1);
        let before = history(&folder);
        let completed = child("a_restore_that_is_killed_is_never_taken_for_a_state", &folder, steps);
        if folder.join(UNFINISHED_FOLDER).exists() {
            unfinished += 1;
            let error = admin::fsck(&folder, false, &mut ()).unwrap_err();
            assert!(matches!(error, AdminError::Unfinished { .. }), "before step {steps}: {error}");
        } else {
            let found = history(&folder);
            let is_new = found.starts_with(&wanted);
            assert!(is_new || found == before, "before step {steps}: neither the old state nor the new one");
            old += usize::from(!is_new);
        }
        admin::restore(&file(&folder), &folder, true, &mut ()).unwrap();
        assert!(history(&folder).starts_with(&wanted), "before step {steps}: once more");
        if completed {
            assert!(unfinished > 3 && old > 0, "{unfinished} unfinished and {old} old ones of {steps}");
            return;
        }
    }
    panic!("the child was not done after {STEPS_MAX} steps");
}

#[test]
fn a_repair_that_is_killed_leaves_the_old_database_or_the_new_one() {
    if is_child(|folder| drop(admin::fsck(folder, true, &mut ()).unwrap())) {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    for steps in 0..STEPS_MAX {
        let folder = root.path().join(format!("state-{steps}"));
        state(&folder, 2);
        let before = tables(&folder);
        let connection = rusqlite::Connection::open(folder.join("hatchery.db")).unwrap();
        connection.execute("UPDATE nodes SET name = 'eve'", []).unwrap();
        drop(connection);
        let changed = tables(&folder);
        let completed =
            child("a_repair_that_is_killed_leaves_the_old_database_or_the_new_one", &folder, steps);
        let found = tables(&folder);
        assert!(found == before || (found == changed && !completed), "before step {steps}");
        let report = admin::fsck(&folder, true, &mut ()).unwrap();
        // The blobs of this state's dataset are made up.
        let open = |kind| !matches!(kind, FindingKind::BlobMissing);
        let left: Vec<_> = admin::fsck(&folder, false, &mut ()).unwrap().findings;
        assert!(!left.iter().any(|finding| open(finding.kind)), "after {report:?}: {left:?}");
        assert_eq!(tables(&folder), before, "before step {steps}");
        if completed {
            assert!(steps >= 2, "{steps}");
            return;
        }
    }
    panic!("the child was not done after {STEPS_MAX} steps");
}
