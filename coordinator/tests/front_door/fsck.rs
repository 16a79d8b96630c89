//! A check of a state folder finds what was done to it, repairs what it can prove, and nothing else.

use std::{fs, path::Path};

use hatchery_coordinator::admin::{AdminError, FindingKind, FindingState, FsckReport, fsck};
use rusqlite::Connection;

use crate::state::{Busy, blob_files, busy, flip, load};

fn check(state: &Path, repair: bool) -> FsckReport {
    fsck(state, repair, &mut ()).unwrap()
}

/// What was found, without the words.
fn kinds(report: &FsckReport) -> Vec<(FindingKind, FindingState)> {
    report.findings.iter().map(|finding| (finding.kind, finding.state)).collect()
}

fn sql(state: &Path, statements: &str) {
    let connection = Connection::open(state.join("hatchery.db")).unwrap();
    connection.pragma_update(None, "foreign_keys", false).unwrap();
    connection.execute_batch(statements).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_folder_has_nothing_to_find_and_one_in_use_is_refused() {
    let Busy { fixture, session, .. } = busy().await;
    let error = fsck(&fixture.state(), true, &mut ()).unwrap_err();
    assert!(matches!(error, AdminError::Lock(_)), "{error:?}");
    let mut fixture = fixture;
    drop(session);
    fixture.stop().await;
    let before = load(&fixture.state());
    for repair in [false, true] {
        let report = check(&fixture.state(), repair);
        assert_eq!(report.findings, []);
        assert!(report.is_sound() && report.blobs > 4 && report.last_event == before.last_event);
    }
    assert_eq!(load(&fixture.state()), before);
    let elsewhere = tempfile::tempdir().unwrap();
    assert!(matches!(fsck(elsewhere.path(), true, &mut ()), Err(AdminError::NoState { .. })));
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "no lock, no database is made");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_made_anew_from_whole_events() {
    let (mut fixture, state) = busy().await.left().await;
    let before = load(&state);
    let differs = FindingKind::TableDiffers;
    for (what, statements, tables) in [
        ("a phase", "UPDATE jobs SET phase = 'cancelled', ended_at = 7, why = 'me'", &["table jobs"][..]),
        ("a phase that there is not", "UPDATE jobs SET phase = 'asleep'", &["table jobs"]),
        ("an epoch", "UPDATE attempts SET epoch = epoch + 1", &["table attempts"]),
        (
            "a column that no state is read from",
            "UPDATE checkpoints SET size_bytes = 1",
            &["table checkpoints"],
        ),
        (
            "two tables",
            "DELETE FROM requests; UPDATE nodes SET name = 'x'",
            &["table nodes", "table requests"],
        ),
        (
            "a row too many",
            "INSERT INTO tokens SELECT 'aa', scope, name, labels, created_by, 1, 2, 3 FROM tokens LIMIT 1",
            &["table tokens"],
        ),
        ("a certificate", "UPDATE certificates SET revoked_at = 1", &["table certificates"]),
        ("an index", "DROP INDEX jobs_by_phase", &["tables"]),
        ("a table", "DROP TABLE rollouts", &["tables"]),
        ("a trigger", "DROP TRIGGER events_are_not_removed", &["tables"]),
    ] {
        sql(&state, statements);
        let found = check(&state, false);
        let told = |report: &FsckReport| -> Vec<_> {
            let differing = report.findings.iter().filter(|finding| finding.kind == differs);
            differing.map(|finding| (finding.subject.clone(), finding.state)).collect()
        };
        let expected =
            |state| -> Vec<_> { tables.iter().map(|table| ((*table).to_owned(), state)).collect() };
        assert_eq!(told(&found), expected(FindingState::Repairable), "{what}: {found:?}");
        assert!(!found.is_sound());
        let repaired = check(&state, true);
        assert_eq!(told(&repaired), expected(FindingState::Repaired), "{what}");
        assert!(repaired.is_sound(), "{what}: {repaired:?}");
        assert_eq!(check(&state, false).findings, [], "{what}");
        assert_eq!(load(&state), before, "{what}");
    }
    // Each time the old file was kept.
    let kept = fs::read_dir(&state).unwrap().filter(|entry| {
        entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("hatchery.db.before-repair-")
    });
    assert_eq!(kept.count(), 10);
    fixture.begin().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_not_whole_prove_nothing() {
    let (_house, state) = busy().await.left().await;
    let database = state.join("hatchery.db");
    let whole = fs::read(&database).unwrap();
    let off = "DROP TRIGGER events_are_not_rewritten; DROP TRIGGER events_are_not_removed;";
    for (what, statements, says) in [
        ("one is gone", "DELETE FROM events WHERE seq = 5", "after number 4: event 6: event 5 is missing"),
        ("no JSON", "UPDATE events SET body = 'x' || body WHERE seq = 3", "after number 2: event 3"),
        ("another time", "UPDATE events SET at = at + 1 WHERE seq = 3", "its columns do not match its body"),
        (
            "another epoch",
            "UPDATE events SET body = replace(body, '\"epoch\":1', '\"epoch\":3') WHERE kind = 'lease_granted'",
            "event lease_granted contradicts the database",
        ),
    ] {
        sql(&state, &format!("{off}{statements}"));
        let changed = fs::read(&database).unwrap();
        let report = check(&state, true);
        let finding = report.findings.iter().find(|finding| finding.kind == FindingKind::EventsDamaged);
        let finding = finding.unwrap_or_else(|| panic!("{what}: {report:?}"));
        assert!(finding.problem.contains(says), "{what}: {}", finding.problem);
        assert_eq!(finding.state, FindingState::Open);
        assert!(finding.remedy.contains("hatchery admin restore"), "{}", finding.remedy);
        assert!(!report.is_sound());
        assert_eq!(fs::read(&database).unwrap(), changed, "{what}: the database is left alone");
        fs::write(&database, &whole).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_file_is_made_anew_or_left_alone() {
    let (_house, state) = busy().await.left().await;
    let database = state.join("hatchery.db");
    let (whole, before) = (fs::read(&database).unwrap(), load(&state));
    let page_bytes = 4096;
    let mut mended = 0;
    for page in 1..whole.len() / page_bytes {
        let mut bytes = whole.clone();
        bytes[page * page_bytes..(page + 1) * page_bytes].fill(0xA5);
        fs::write(&database, &bytes).unwrap();
        let report = check(&state, true);
        assert!(
            !report.findings.is_empty(),
            "page {page} is in use, since a backup or a start packs nothing"
        );
        if report.is_sound() {
            mended += 1;
            assert_eq!(load(&state), before, "page {page}");
            assert_eq!(check(&state, false).findings, [], "page {page}");
        } else {
            assert_eq!(fs::read(&database).unwrap(), bytes, "page {page}: the database is left alone");
        }
    }
    assert!(mended > 5, "{mended}: pages of tables and indexes can be made anew");
    fs::write(&database, b"a letter to my grandmother").unwrap();
    let report = check(&state, true);
    assert_eq!(
        kinds(&report)[..2],
        [
            (FindingKind::EventsDamaged, FindingState::Open),
            (FindingKind::DatabaseDamaged, FindingState::Open)
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_read_and_damaged_ones_put_aside() {
    let (mut fixture, state) = busy().await.left().await;
    let files = blob_files(&state);
    let id = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    flip(&files[0], 1);
    fs::remove_file(&files[1]).unwrap();
    fs::remove_file(files[1].with_extension("pieces")).unwrap();

    let report = check(&state, false);
    assert_eq!(
        kinds(&report),
        [
            (FindingKind::BlobDamaged, FindingState::Repairable),
            (FindingKind::BlobMissing, FindingState::Open)
        ]
    );
    assert_eq!(report.findings[0].subject, id(&files[0]));
    assert_eq!(report.findings[1].subject, id(&files[1]));
    assert!(files[0].exists(), "nothing is moved without --repair");

    let report = check(&state, true);
    let missing = (FindingKind::BlobMissing, FindingState::Open);
    assert_eq!(kinds(&report), [(FindingKind::BlobDamaged, FindingState::Repaired), missing, missing]);
    assert!(!files[0].exists());
    assert!(state.join("blobs/quarantine").join(files[0].file_name().unwrap()).exists());
    assert_eq!(kinds(&check(&state, true)), [missing, missing], "that is left until they come again");
    fixture.begin().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_needs_is_removed_and_what_nobody_names_is_kept() {
    let (fixture, state) = busy().await.left().await;
    let shard = blob_files(&state)[0].parent().unwrap().to_owned();
    let leftovers = [
        state.join("blobs/partial/put-x1"),
        shard.join(".writing-x2"),
        state.join(".writing-x3"),
        state.join("authority/.writing-x4"),
    ];
    for path in &leftovers {
        fs::write(path, "half a thing").unwrap();
    }
    fs::create_dir_all(state.join(".fsck-x5/deep")).unwrap();
    fs::write(shard.join("letter.txt"), "dear").unwrap();
    let limits = hatchery_common::blob::BlobLimits { free_bytes_min: 0, ..Default::default() };
    let elsewhere = tempfile::tempdir().unwrap();
    let store = hatchery_common::blob::BlobStore::open(elsewhere.path(), limits).unwrap();
    let unnamed = store.put_bytes(b"nobody names me").unwrap();
    let (from, to) = (blob_files_of(elsewhere.path()), state.join("blobs").join(&unnamed.to_string()[..2]));
    fs::create_dir_all(&to).unwrap();
    for path in &from {
        fs::copy(path, to.join(path.file_name().unwrap())).unwrap();
    }

    let report = check(&state, false);
    let (leftover, note) = (FindingKind::Leftover, FindingState::Note);
    let notes = [(FindingKind::Stranger, note), (FindingKind::BlobUnnamed, note)];
    assert_eq!(kinds(&report), [&[(leftover, FindingState::Repairable); 5][..], &notes].concat());
    assert!(!report.is_sound());
    assert!(leftovers.iter().all(|path| path.exists()));
    let report = check(&state, true);
    assert_eq!(kinds(&report), [&[(leftover, FindingState::Repaired); 5][..], &notes].concat());
    assert!(!leftovers.iter().any(|path| path.exists()) && !state.join(".fsck-x5").exists());
    let report = check(&state, true);
    assert_eq!(kinds(&report), notes, "kept: an upload");
    assert!(report.is_sound());

    // The authority's certificate comes back from its key; the key does not come back from anything.
    fs::remove_file(state.join("authority/authority.pem")).unwrap();
    assert_eq!(kinds(&check(&state, false))[0], (FindingKind::Authority, FindingState::Repairable));
    assert!(check(&state, true).is_sound());
    fs::remove_file(state.join("authority/authority.key.pem")).unwrap();
    assert_eq!(kinds(&check(&state, true))[0], (FindingKind::Authority, FindingState::Open));
    drop(fixture);
}

/// Both files of every blob of a store.
fn blob_files_of(store: &Path) -> Vec<std::path::PathBuf> {
    let shards = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    let shards = shards.filter(|path| path.file_name().unwrap().len() == 2);
    shards.flat_map(|shard| fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().path())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_coordinators_log_is_taken_in() {
    let Busy { fixture, .. } = busy().await;
    // What a kill leaves: the files as they are while it runs.
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    fs::create_dir_all(state.join("authority")).unwrap();
    for file in ["hatchery.db", "hatchery.db-wal", "authority/authority.pem", "authority/authority.key.pem"] {
        fs::copy(fixture.state().join(file), state.join(file)).unwrap();
    }
    assert!(fs::metadata(state.join("hatchery.db-wal")).unwrap().len() > 0);
    let report = check(&state, false);
    let missing = report.findings.iter().all(|finding| finding.kind == FindingKind::BlobMissing);
    assert!(missing && report.last_event > 5, "{report:?}");
}
