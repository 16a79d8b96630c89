//! Backups and restores: of a coordinator that runs and is busy, into folders of all kinds, from files of all kinds.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hatchery_common::{
    access::Scope,
    blob::{BlobLimits, BlobStore},
    digest::Digest,
    id::RequestId,
};
use hatchery_coordinator::{
    RunError,
    admin::{self, AdminError, BackupOptions, BackupSummary, UNFINISHED_FOLDER, Watcher},
};
use hatchery_proto::client::CallError;
use hatchery_scheduler::{Event, What};
use proptest::prelude::*;
use tar::{EntryType, Header};
use tempfile::TempDir;

use crate::{
    agent::token,
    fixture::{Fixture, soon, spec},
    state::{Busy, busy, commit, events, load, replayed},
};

const WITH_BLOBS: BackupOptions = BackupOptions { with_blobs: true };

async fn backup(state: PathBuf, file: PathBuf, options: BackupOptions) -> Result<BackupSummary, AdminError> {
    soon(tokio::task::spawn_blocking(move || admin::backup(&state, &file, options, &mut ()))).await.unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_one_instant() {
    let busy = busy().await;
    let (fleet, dataset) = (busy.fixture.fleet().await, busy.job.spec.dataset);
    let stop = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&stop);
    let load_on_it = tokio::spawn(async move {
        let mut submitted = 0;
        while !until.load(Ordering::Relaxed) {
            soon(fleet.submit(RequestId::random(), &spec(dataset))).await.unwrap();
            soon(fleet.create_token(&token(Scope::Viewer))).await.unwrap();
            submitted += 1;
        }
        submitted
    });
    let folder = tempfile::tempdir().unwrap();
    let mut summaries = Vec::new();
    for round in 0..4 {
        let file = folder.path().join(format!("{round}.tar"));
        summaries.push(backup(busy.fixture.state(), file, WITH_BLOBS).await.unwrap());
        // The next one has something new in it.
        soon(busy.fixture.fleet().await.create_token(&token(Scope::Viewer))).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert!(soon(load_on_it).await.unwrap() > 0);
    assert_eq!(names(folder.path()), ["0.tar", "1.tar", "2.tar", "3.tar"], "no scratch is left");
    let (fixture, state) = busy.left().await;
    let all = events(&state);
    assert!(summaries.is_sorted_by(|a, b| a.last_event < b.last_event), "{summaries:?}");

    for summary in summaries {
        let mode = fs::metadata(&summary.file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let to = folder.path().join(format!("from-{}", summary.last_event));
        let restored = admin::restore(&summary.file, &to, false, &mut ()).unwrap();
        let count = summary.last_event as usize;
        let after = events(&to);
        assert_eq!(after[..count], all[..count], "the history is a prefix of the real one");
        let then = replayed(&all[..count]);
        let tail = &after[count..];
        assert!(
            matches!(
                tail,
                [Event { what: What::LeaseEnded { .. }, .. }, Event { what: What::Restored { .. }, .. }]
            ),
            "{tail:?}"
        );
        let now = load(&to);
        assert_eq!(now, replayed(&after));
        assert_eq!(
            (&now.nodes, &now.tokens, &now.certificates, &now.checkpoints, &now.datasets, &now.requests),
            (
                &then.nodes,
                &then.tokens,
                &then.certificates,
                &then.checkpoints,
                &then.datasets,
                &then.requests
            )
        );
        assert_eq!((restored.jobs, restored.leases_ended), (then.jobs.len(), 1));
        for (id, job) in &then.jobs {
            let after = &now.jobs[id];
            assert_eq!((&job.spec, job.checkpoint), (&after.spec, after.checkpoint));
            assert_eq!(after.epoch, restored.epoch_floor);
        }
        for file in ["authority/authority.key.pem", "authority/authority.pem"] {
            assert_eq!(fs::read(to.join(file)).unwrap(), fs::read(state.join(file)).unwrap());
        }
        let key = fs::metadata(to.join("authority/authority.key.pem")).unwrap().permissions().mode();
        assert_eq!(key & 0o077, 0);
        let blobs = |at: &Path| BlobStore::open(&at.join("blobs"), BlobLimits::default()).unwrap().list();
        assert_eq!(blobs(&to), blobs(&state));
        assert_eq!((summary.blobs_missing, restored.blobs_missing), (0, 0));
        assert!(admin::fsck(&to, false, &mut ()).unwrap().findings.is_empty());
    }
    drop(fixture);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_goes_on_with_the_restored_one_and_old_epochs_are_refused() {
    let mut busy = busy().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup.tar");
    backup(busy.fixture.state(), file.clone(), WITH_BLOBS).await.unwrap();
    // After the backup the job goes on, under epochs that the backup has never heard of.
    busy.session.report(vec![], vec![]).await;
    busy.fixture.stop().await;

    for round in 0..2 {
        let state = folder.path().join(format!("restored-{round}"));
        admin::restore(&file, &state, false, &mut ()).unwrap();
        let floor = load(&state).jobs[&busy.job.id].epoch;
        let started = Instant::now();
        let mut fixture = Fixture::start_with(|settings| {
            settings.state = Some(state.clone());
            settings.lease_secs = 2;
        })
        .await;
        assert_eq!(soon(fixture.fleet().await.jobs(false)).await.unwrap().len(), 2);
        // The agent comes with the certificate that it has.
        busy.agent.move_to(&fixture).await;
        let mut session = busy.agent.session().await;
        session.report(vec![], vec![]).await;
        let attempt =
            session.assignment(|now| now.attempts.iter().any(|one| one.id.job == busy.job.id)).await;
        let attempt = attempt.attempts.into_iter().find(|one| one.id.job == busy.job.id).unwrap();
        assert!(attempt.id.epoch > floor && floor > busy.attempt.id.epoch);
        assert!(started.elapsed() > Duration::from_millis(1900), "what ran before may run for a term still");
        // What the backup knows of may still come; an epoch that it has never heard of may not.
        let late = commit(&busy, &busy.agent, &busy.attempt, 15).await;
        assert_eq!(late.is_ok(), round == 0, "{late:?}");
        assert!(!matches!(late, Err(CallError::Unreachable(_))), "{late:?}");
        let checkpoint = commit(&busy, &busy.agent, &attempt, 20).await.unwrap();
        assert_eq!(
            fixture.job_when(busy.job.id, |job| job.checkpoint_step == 20).await.checkpoint,
            Some(checkpoint)
        );
        drop(session);
        fixture.stop().await;
        // The next round restores the same backup: its epochs are above these.
        busy.attempt = attempt;
    }
}

/// A backup of a small, quiet state.
async fn small_backup(options: BackupOptions) -> (TempDir, PathBuf) {
    let (_house, state) = busy().await.left().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup.tar");
    backup(state, file.clone(), options).await.unwrap();
    (folder, file)
}

fn refused(bytes: &[u8], folder: &Path) -> AdminError {
    let file = folder.join("bad.tar");
    fs::write(&file, bytes).unwrap();
    let to = folder.join("to");
    let error = admin::restore(&file, &to, false, &mut ()).unwrap_err();
    assert!(!to.exists(), "{error}: a file that is refused leaves no folder");
    error
}

#[test]
fn a_flipped_byte_anywhere_is_refused() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (folder, file) = runtime.block_on(small_backup(WITH_BLOBS));
    let whole = fs::read(&file).unwrap();
    let check = |place: usize, flip: u8| {
        let mut bytes = whole.clone();
        bytes[place] ^= flip;
        let error = refused(&bytes, folder.path());
        assert!(matches!(error, AdminError::Damaged { .. }), "byte {place}: {error:?}");
    };
    // Every byte of the seal and the last entry before it, and any others.
    for place in whole.len() - 3072..whole.len() {
        check(place, 1);
    }
    let places = (0..whole.len(), 1..=255_u8);
    let config = ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() };
    proptest::test_runner::TestRunner::new(config)
        .run(&places, |(place, flip)| {
            check(place, flip);
            Ok(())
        })
        .unwrap();
    for length in [0, 1, 511, 2047, 2048, whole.len() / 2, whole.len() - 1] {
        assert!(matches!(refused(&whole[..length], folder.path()), AdminError::Damaged { .. }), "{length}");
    }
    let longer = [&whole[..], &[0; 512]].concat();
    assert!(matches!(refused(&longer, folder.path()), AdminError::Damaged { .. }));
    admin::restore(&file, &folder.path().join("to"), false, &mut ()).unwrap();
}

/// A tar file of these entries, sealed as a backup is.
fn sealed(entries: &[(EntryType, &str, &[u8])]) -> Vec<u8> {
    let header = |kind, name: &str, size| {
        let mut header = Header::new_ustar();
        // Not by `set_path`, which refuses just what is wanted here.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        header
    };
    let mut bytes = Vec::new();
    let put = |kind, name: &str, content: &[u8], bytes: &mut Vec<u8>| {
        bytes.extend(header(kind, name, content.len() as u64).as_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    };
    for (kind, name, content) in entries {
        put(*kind, name, content, &mut bytes);
    }
    let seal = format!("{}\n", Digest::of(&bytes));
    put(EntryType::Regular, "seal", seal.as_bytes(), &mut bytes);
    bytes.extend([0; 1024]);
    bytes
}

/// The entries of a backup.
fn entries(file: &Path) -> Vec<(EntryType, String, Vec<u8>)> {
    let mut archive = tar::Archive::new(fs::File::open(file).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (entry.header().entry_type(), entry.path().unwrap().display().to_string(), content)
    });
    entries.filter(|(_, name, _)| name != "seal").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crafted_file_is_refused_and_writes_nothing_outside() {
    let (folder, file) = small_backup(WITH_BLOBS).await;
    let good = entries(&file);
    let borrowed = |entries: &[(EntryType, String, Vec<u8>)]| {
        let entries: Vec<_> =
            entries.iter().map(|(kind, name, content)| (*kind, name.as_str(), &content[..])).collect();
        sealed(&entries)
    };
    let manifest = good.len() - 1;
    assert_eq!(good[manifest].1, "manifest.json");
    let plain = |name: &str| (EntryType::Regular, name.to_owned(), b"evil".to_vec());
    let strangers = [
        plain("../evil"),
        plain("/tmp/evil"),
        plain("blobs/../../evil"),
        plain("authority/../../evil"),
        plain("./hatchery.db"),
        plain("hatchery.db"),
        plain("hatchery.db-wal"),
        plain("lock"),
        plain(&format!("blobs/{}", "0".repeat(64))),
        (EntryType::Symlink, "blobs".to_owned(), vec![]),
        (EntryType::Directory, "evil".to_owned(), vec![]),
        (EntryType::Link, "hatchery.db".to_owned(), vec![]),
        (EntryType::GNULongName, "././@LongLink".to_owned(), b"../evil\0".to_vec()),
        (EntryType::XHeader, "pax".to_owned(), b"19 path=../../evil\n".to_vec()),
    ];
    let mut bad: Vec<(String, Vec<_>)> = Vec::new();
    for stranger in strangers {
        for place in [0, manifest, good.len()] {
            let mut entries = good.clone();
            entries.insert(place, stranger.clone());
            bad.push((format!("{} at {place}", stranger.1), entries));
        }
    }
    for place in 0..good.len() {
        let mut entries = good.clone();
        let (_, name, _) = entries.remove(place);
        bad.push((format!("without {name}"), entries));
    }
    let mut swapped = good.clone();
    swapped[1].2 = swapped[2].2.clone();
    bad.push(("another key".to_owned(), swapped));
    bad.push(("nothing at all".to_owned(), vec![]));

    let to = folder.path().join("to/state");
    fs::create_dir_all(&to).unwrap();
    for (what, entries) in bad {
        fs::write(folder.path().join("bad.tar"), borrowed(&entries)).unwrap();
        let error = admin::restore(&folder.path().join("bad.tar"), &to, false, &mut ()).err();
        let error = error.unwrap_or_else(|| panic!("{what}: it was restored"));
        assert!(matches!(error, AdminError::Damaged { .. } | AdminError::File(_)), "{what}: {error:?}");
        assert_eq!(names(&to), ["lock"], "{what}: {error}");
        assert_eq!(names(folder.path()), ["backup.tar", "bad.tar", "to"], "{what}");
    }

    let mut newer = good.clone();
    newer[manifest].2 = br#"{"format": 2, "version": "9.0.0", "all": "new"}"#.to_vec();
    fs::write(folder.path().join("bad.tar"), borrowed(&newer)).unwrap();
    let error = admin::restore(&folder.path().join("bad.tar"), &to, false, &mut ()).unwrap_err().to_string();
    assert!(error.contains("format 2 by version 9.0.0"), "{error}");
    // The same entries by another hand are as good as ours.
    fs::write(folder.path().join("bad.tar"), borrowed(&good)).unwrap();
    admin::restore(&folder.path().join("bad.tar"), &to, false, &mut ()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_or_full_is_refused_and_its_content_is_kept() {
    let Busy { fixture, .. } = busy().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup.tar");
    backup(fixture.state(), file.clone(), BackupOptions::default()).await.unwrap();
    let again = backup(fixture.state(), file.clone(), BackupOptions::default()).await.unwrap_err();
    assert!(matches!(again, AdminError::Exists { .. }), "{again}");
    for replace in [false, true] {
        let error = admin::restore(&file, &fixture.state(), replace, &mut ()).unwrap_err();
        assert!(matches!(error, AdminError::Lock(_)), "{error:?}");
    }

    let to = folder.path().join("to");
    fs::create_dir(&to).unwrap();
    fs::write(to.join("diary"), "dear diary").unwrap();
    let error = admin::restore(&file, &to, false, &mut ()).unwrap_err();
    assert!(error.to_string().contains("not empty (diary)"), "{error}");
    assert_eq!(names(&to), ["diary", "lock"]);
    let restored = admin::restore(&file, &to, true, &mut ()).unwrap();
    let aside = restored.put_aside.unwrap();
    assert_eq!(fs::read_to_string(aside.join("diary")).unwrap(), "dear diary");
    assert!(restored.blobs == 0 && restored.blobs_missing > 0, "{} blobs", restored.blobs_missing);

    // One that was cut off while it moved things is not taken for a state; one more restore mends it.
    fs::create_dir(to.join(UNFINISHED_FOLDER)).unwrap();
    fs::rename(to.join("hatchery.db"), to.join(UNFINISHED_FOLDER).join("hatchery.db")).unwrap();
    let mut fixture = Fixture::start().await;
    fixture.stop().await;
    let start = Fixture::try_start_with(|settings| settings.state = Some(to.clone())).await.err().unwrap();
    assert!(matches!(start, RunError::Unfinished(_)), "{start}");
    let error = backup(to.clone(), folder.path().join("no.tar"), WITH_BLOBS).await.unwrap_err();
    assert!(error.to_string().contains("restore again with --replace"), "{error}");
    admin::restore(&file, &to, true, &mut ()).unwrap();
    assert_eq!(
        names(&to).iter().filter(|name| !name.starts_with("before-")).collect::<Vec<_>>(),
        ["authority", "blobs", "hatchery.db", "lock"]
    );
    let elsewhere = backup(folder.path().join("none"), folder.path().join("no.tar"), WITH_BLOBS).await;
    assert!(elsewhere.unwrap_err().to_string().contains("is not a coordinator's state folder"));
}

/// Ends the work after so many steps.
struct Until(usize);

impl Watcher for Until {
    fn phase(&mut self, _what: &'static str, _bytes_total: Option<u64>) {}

    fn advance(&mut self, _bytes: u64) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 > 0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_one_leaves_nothing_behind() {
    let (fixture, state) = busy().await.left().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup.tar");
    let mut interrupted = 0;
    loop {
        match admin::backup(&state, &file, WITH_BLOBS, &mut Until(interrupted + 1)) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, AdminError::Interrupted), "{error:?}"),
        }
        assert_eq!(names(folder.path()).len(), 0, "after {interrupted} steps");
        interrupted += 1;
    }
    assert!(interrupted > 5, "{interrupted}");
    let to = folder.path().join("to");
    fs::create_dir(&to).unwrap();
    let mut interrupted = 0;
    while let Err(error) = admin::restore(&file, &to, false, &mut Until(interrupted + 1)) {
        assert!(matches!(error, AdminError::Interrupted), "{error:?}");
        assert_eq!(names(&to), ["lock"], "after {interrupted} steps");
        interrupted += 1;
    }
    assert!(interrupted > 5, "{interrupted}");
    drop(fixture);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_is_left_out_and_told() {
    let (fixture, state) = busy().await.left().await;
    let folder = tempfile::tempdir().unwrap();
    let files = crate::state::blob_files(&state);
    crate::state::flip(&files[0], 3);
    fs::remove_file(&files[1]).unwrap();
    let summary = backup(state, folder.path().join("backup.tar"), WITH_BLOBS).await.unwrap();
    assert_eq!((summary.blobs, summary.blobs_missing), (files.len() - 2, 2));
    let lost = summary.lost.join("\n");
    assert!(lost.contains("it is missing") && lost.contains("it is damaged: piece 0"), "{lost}");
    let to = folder.path().join("to");
    let restored = admin::restore(&summary.file, &to, false, &mut ()).unwrap();
    assert_eq!((restored.blobs, restored.blobs_missing), (files.len() - 2, 2));
    drop(fixture);
}
