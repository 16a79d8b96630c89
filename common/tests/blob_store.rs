//! The blob store through its front door: whatever happens to transfers and disks, only checked bytes come out.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::{
    fs::{self, OpenOptions, Permissions},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use hatchery_common::{
    blob::{
        BlobError, BlobFault, BlobFolder, BlobLimits, BlobListing, BlobStore, BlobWriter, ManifestError,
        PIECE_BYTES_MIN, PieceManifest,
    },
    durable::FileError,
    id::BlobId,
    time::BootTime,
};
use proptest::prelude::*;

const PIECE: usize = PIECE_BYTES_MIN as usize;
/// Tests run on whatever disk there is.
const NO_WATERMARK: BlobLimits = BlobLimits { quota_bytes: None, free_bytes_min: 0 };

fn open(folder: &Path) -> BlobStore {
    BlobStore::open(folder, NO_WATERMARK).unwrap()
}

/// Bytes that differ from piece to piece and from seed to seed.
fn bytes_of(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size).map(|_| next()).collect()
}

fn piece<'a>(manifest: &PieceManifest, bytes: &'a [u8], index: u32) -> &'a [u8] {
    let range = manifest.piece_range(index).unwrap();
    &bytes[range.start as usize..range.end as usize]
}

fn write_pieces(writer: &BlobWriter, bytes: &[u8], indexes: impl IntoIterator<Item = u32>) {
    for index in indexes {
        writer.write_piece(index, piece(writer.manifest(), bytes, index)).unwrap();
    }
}

fn data_path(folder: &Path, id: BlobId) -> PathBuf {
    folder.join(&id.to_string()[..2]).join(format!("{id}.data"))
}

/// Changes one bit of a file, as a failing disk does.
fn flip_bit(path: &Path, bit: u64) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

fn read_all(store: &BlobStore, id: BlobId) -> Result<Vec<u8>, BlobError> {
    let reader = store.reader(id)?;
    let pieces: Result<Vec<_>, _> =
        (0..reader.manifest().piece_count()).map(|index| reader.read_piece(index)).collect();
    Ok(pieces?.concat())
}

#[test]
fn what_is_put_comes_back_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let bytes = bytes_of(3 * PIECE + 17, 1);
    let file = folder.path().join("file");
    fs::write(&file, &bytes).unwrap();
    let id = store.put_file(&file).unwrap();
    assert_eq!(store.put_bytes(&bytes).unwrap(), id, "the same bytes are the same blob");
    let empty = store.put_bytes(b"").unwrap();
    for store in [store, open(folder.path())] {
        assert_eq!(read_all(&store, id).unwrap(), bytes);
        assert_eq!(read_all(&store, empty).unwrap(), b"");
        assert_eq!(store.manifest(id).unwrap(), PieceManifest::of_bytes(&bytes));
        assert_eq!(fs::read(store.verified_path(id).unwrap()).unwrap(), bytes);
        assert_eq!((store.size(id), store.used_bytes()), (Some(bytes.len() as u64), bytes.len() as u64));
        assert_eq!(store.list().len(), 2);
        assert!(matches!(
            store.read_piece(id, 4),
            Err(BlobError::Manifest(ManifestError::NoSuchPiece { .. }))
        ));
    }
    assert_eq!(fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
}

#[test]
fn removal_is_for_good_and_open_readers_finish() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let id = store.put_bytes(b"short").unwrap();
    let reader = store.reader(id).unwrap();
    assert!(store.remove(id).unwrap());
    assert!(!store.remove(id).unwrap());
    assert_eq!(reader.read_piece(0).unwrap(), b"short");
    assert!(matches!(store.read_piece(id, 0), Err(BlobError::NotFound { .. })));
    assert!(open(folder.path()).list().is_empty());
}

#[test]
fn a_transfer_has_one_writer_and_ends_when_all_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let bytes = bytes_of(2 * PIECE + 1, 2);
    let manifest = PieceManifest::of_bytes(&bytes);
    let id = manifest.id();
    let writer = store.writer(manifest.clone()).unwrap();
    assert!(matches!(store.writer(manifest.clone()), Err(BlobError::Busy { .. })));
    assert!(matches!(store.discard_partial(id), Err(BlobError::Busy { .. })));
    write_pieces(&writer, &bytes, [2, 0]);
    assert!(!writer.write_piece(0, piece(&manifest, &bytes, 0)).unwrap(), "it was there already");
    assert_eq!((writer.missing(), writer.have_count()), (vec![1], 2));
    assert!(matches!(
        writer.write_piece(1, piece(&manifest, &bytes, 0)),
        Err(BlobError::WrongPiece { problem: ManifestError::WrongPiece { index: 1, .. }, .. })
    ));
    assert_eq!(writer.read_piece(2).unwrap().unwrap(), piece(&manifest, &bytes, 2));
    assert_eq!(writer.read_piece(1).unwrap(), None);
    assert_eq!(writer.read_unsaved(2).unwrap(), piece(&manifest, &bytes, 2));
    assert_eq!(writer.read_unsaved(1), None);
    writer.save().unwrap();
    assert_eq!(writer.read_unsaved(2), None, "it may have left memory");
    assert!(
        !store.has(id) && matches!(store.reader(id), Err(BlobError::NotFound { .. })),
        "not to be seen yet"
    );
    assert!(matches!(writer.finish(), Err(BlobError::Incomplete { missing: 1, count: 3, .. })));
    drop(writer);
    let writer = store.resume(id).unwrap();
    write_pieces(&writer, &bytes, [1]);
    assert_eq!(writer.finish().unwrap(), id);
    assert!(matches!(store.writer(manifest), Err(BlobError::Present { .. })));
    assert_eq!(read_all(&store, id).unwrap(), bytes);
    assert!(store.partials().is_empty());
}

#[test]
fn several_threads_fill_one_blob() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let bytes = bytes_of(16 * PIECE, 3);
    let writer = store.writer(PieceManifest::of_bytes(&bytes)).unwrap();
    std::thread::scope(|scope| {
        for first in 0..4 {
            let (writer, bytes) = (&writer, &bytes);
            scope.spawn(move || write_pieces(writer, bytes, (first..16).step_by(3)));
        }
    });
    let id = writer.finish().unwrap();
    assert_eq!(read_all(&store, id).unwrap(), bytes);
}

#[test]
fn claims_are_hashed_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = bytes_of(4 * PIECE, 4);
    let manifest = PieceManifest::of_bytes(&bytes);
    let id = manifest.id();
    let writer = open(folder.path()).writer(manifest.clone()).unwrap();
    write_pieces(&writer, &bytes, 0..3);
    drop(writer);
    // What a power cut leaves: progress that claims a piece whose data never reached the disk.
    let data = folder.path().join("partial").join(format!("{id}.data"));
    flip_bit(&data, 8 * PIECE as u64 + 5);
    let store = open(folder.path());
    assert_eq!(store.partials()[0].id, id);
    let writer = store.writer(manifest.clone()).unwrap();
    assert_eq!(writer.missing(), [1, 3]);
    drop(writer);
    // A progress file of another length claims nothing; a data file of another length is started anew.
    fs::write(folder.path().join("partial").join(format!("{id}.have")), [255; 9]).unwrap();
    assert_eq!(store.writer(manifest.clone()).unwrap().missing(), [0, 1, 2, 3]);
    OpenOptions::new().write(true).open(&data).unwrap().set_len(5).unwrap();
    assert_eq!(store.writer(manifest).unwrap().missing(), [0, 1, 2, 3]);
    let writer = store.resume(id).unwrap();
    let (begin, end) = (BootTime(0), BootTime(u64::MAX));
    assert_eq!(store.discard_idle_partials(end), [], "somebody writes it");
    drop(writer);
    assert_eq!(store.discard_idle_partials(begin), [], "somebody wrote it since then");
    let gone: Vec<BlobId> = store.discard_idle_partials(end).iter().map(|blob| blob.id).collect();
    assert_eq!(gone, [id]);
    assert_eq!((store.used_bytes(), store.discard_partial(id).unwrap()), (0, false));
    assert_eq!(fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
}

#[test]
fn a_piece_that_rots_during_the_transfer_is_missing_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let bytes = bytes_of(2 * PIECE, 5);
    let writer = store.writer(PieceManifest::of_bytes(&bytes)).unwrap();
    write_pieces(&writer, &bytes, [0, 1]);
    let id = writer.id();
    flip_bit(&folder.path().join("partial").join(format!("{id}.data")), 3);
    assert!(matches!(writer.finish(), Err(BlobError::Incomplete { missing: 1, .. })));
    drop(writer);
    let writer = store.resume(id).unwrap();
    assert_eq!(writer.missing(), [0]);
    write_pieces(&writer, &bytes, [0]);
    writer.finish().unwrap();
    assert_eq!(read_all(&store, id).unwrap(), bytes);
}

#[test]
fn a_start_clears_leftovers_and_quarantines_what_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let good = store.put_bytes(b"good").unwrap();
    let [short, unnamed, changed] =
        [b"short", b"unnam", b"chang"].map(|bytes| store.put_bytes(bytes).unwrap());
    let path = data_path(folder.path(), short);
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(2).unwrap();
    fs::remove_file(data_path(folder.path(), unnamed).with_extension("pieces")).unwrap();
    flip_bit(&data_path(folder.path(), changed).with_extension("pieces"), 200);
    let orphan = data_path(folder.path(), good).with_file_name(format!("{short}.pieces"));
    let junk = [folder.path().join("partial/put-abc"), folder.path().join("partial/x.have"), orphan];
    for path in &junk {
        fs::write(path, "junk").unwrap();
    }
    let store = open(folder.path());
    assert_eq!(store.list().iter().map(|info| info.id).collect::<Vec<_>>(), [good]);
    assert!(junk.iter().all(|path| !path.exists()));
    for id in [short, unnamed, changed] {
        assert!(folder.path().join("quarantine").join(format!("{id}.data")).exists());
    }
}

#[test]
fn the_quarantine_keeps_the_last_few() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for number in 0..20_u8 {
        let id = store.put_bytes(&[number]).unwrap();
        flip_bit(&data_path(folder.path(), id), 0);
        assert!(matches!(store.read_piece(id, 0), Err(BlobError::Corrupt { .. })));
    }
    assert_eq!(
        fs::read_dir(folder.path().join("quarantine")).unwrap().count(),
        16,
        "8 blobs, two files each"
    );
}

#[test]
fn a_change_on_the_disk_is_found_before_use() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let bytes = bytes_of(2 * PIECE, 6);
    let id = store.put_bytes(&bytes).unwrap();
    store.open_verified(id).unwrap();
    flip_bit(&data_path(folder.path(), id), 8 * PIECE as u64);
    let error = store.open_verified(id).unwrap_err();
    assert!(matches!(&error, BlobError::Corrupt { quarantine, .. } if quarantine.exists()), "{error}");
    assert!(!store.has(id));
    assert_eq!(store.put_bytes(&bytes).unwrap(), id);
    fs::remove_file(data_path(folder.path(), id)).unwrap();
    assert!(matches!(store.open_verified(id), Err(BlobError::Corrupt { .. })), "gone behind our back");
    assert!(!store.has(id));
}

#[test]
fn links_share_bytes_and_replace_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("store"));
    let id = store.put_bytes(b"shared").unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, "old").unwrap();
    store.link_or_copy_to(id, &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"shared");
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&path), inode(&store.verified_path(id).unwrap()));
    store.remove(id).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"shared");
    assert!(fs::write(&path, "new").is_err() || rustix::process::geteuid().is_root(), "read-only");
}

#[test]
fn quota_and_watermark_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let limits = BlobLimits { quota_bytes: Some(100), free_bytes_min: 0 };
    let store = BlobStore::open(folder.path(), limits).unwrap();
    store.put_bytes(&[0; 60]).unwrap();
    let error = store.put_bytes(&[1; 41]).unwrap_err();
    assert!(
        matches!(error, BlobError::Quota { needed_bytes: 41, used_bytes: 60, quota_bytes: 100, .. }),
        "{error}"
    );
    let manifest = PieceManifest::of_bytes(&[1; 40]);
    let writer = store.writer(manifest).unwrap();
    assert!(matches!(store.put_bytes(&[2; 1]), Err(BlobError::Quota { .. })), "transfers count");
    writer.write_piece(0, &[1; 40]).unwrap();
    writer.finish().unwrap();
    assert_eq!(store.used_bytes(), 100);
    drop(store);
    let limits = BlobLimits { quota_bytes: None, free_bytes_min: 1 << 60 };
    let store = BlobStore::open(folder.path(), limits).unwrap();
    let error = store.put_bytes(b"more").unwrap_err();
    assert!(
        matches!(error, BlobError::Full { needed_bytes: 4, free_bytes_min, .. } if free_bytes_min == 1 << 60)
    );
    assert!(error.to_string().contains("must stay free"), "{error}");
    assert!(matches!(store.writer(PieceManifest::of_bytes(b"more")), Err(BlobError::Full { .. })));
    assert!(store.partials().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Pieces in any order, doubled, damaged on their way, with restarts in between: the blob comes out whole.
    #[test]
    fn any_transfer_ends_in_the_same_bytes(
        size in 0..8 * PIECE,
        seed in any::<u64>(),
        steps in prop::collection::vec((any::<u32>(), 0..8_u8), 0..24),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let bytes = bytes_of(size, seed);
        let manifest = PieceManifest::of_bytes(&bytes);
        let count = manifest.piece_count();
        let mut writer = open(folder.path()).writer(manifest.clone()).unwrap();
        for (pick, action) in steps.into_iter().filter(|_| count > 0) {
            let index = pick % count;
            let had = writer.has(index);
            match action {
                0 => {
                    let have = writer.have_count();
                    drop(writer);
                    writer = open(folder.path()).writer(manifest.clone()).unwrap();
                    prop_assert_eq!(writer.have_count(), have);
                }
                1 => {
                    let mut wrong = piece(&manifest, &bytes, index).to_vec();
                    let at = pick as usize % wrong.len();
                    wrong[at] ^= 1 << (pick % 8);
                    let refused = matches!(writer.write_piece(index, &wrong), Err(BlobError::WrongPiece { .. }));
                    prop_assert!(refused);
                    prop_assert_eq!(writer.has(index), had);
                }
                _ => {
                    let new = writer.write_piece(index, piece(&manifest, &bytes, index)).unwrap();
                    prop_assert_eq!(new, !had);
                }
            }
        }
        write_pieces(&writer, &bytes, writer.missing());
        let id = writer.finish().unwrap();
        prop_assert_eq!(read_all(&open(folder.path()), id).unwrap(), bytes);
    }

    /// One bit flipped anywhere, in the data or in the manifest: no wrong byte comes out, and the blob can be had again.
    #[test]
    fn a_flipped_bit_never_comes_out(
        size in 1..4 * PIECE,
        bit in any::<prop::sample::Index>(),
        in_manifest in any::<bool>(),
        after_restart in any::<bool>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let bytes = bytes_of(size, 7);
        let id = store.put_bytes(&bytes).unwrap();
        let mut path = data_path(folder.path(), id);
        if in_manifest {
            path.set_extension("pieces");
        }
        flip_bit(&path, bit.index(8 * fs::metadata(&path).unwrap().len() as usize) as u64);
        if after_restart {
            store = open(folder.path());
        }
        let error = read_all(&store, id).unwrap_err();
        let found = matches!(error, BlobError::Corrupt { .. } | BlobError::NotFound { .. });
        prop_assert!(found, "{}", error);
        prop_assert!(!store.has(id));
        prop_assert_eq!(store.put_bytes(&bytes).unwrap(), id);
        prop_assert_eq!(read_all(&store, id).unwrap(), bytes);
    }
}

#[test]
fn many_small_blobs_are_added_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let there = store.put_bytes(b"there already").unwrap();
    let mut blobs: Vec<Vec<u8>> = (0..150).map(|n| format!("blob {}", n % 140).into_bytes()).collect();
    blobs.extend([b"there already".to_vec(), vec![], vec![7; 200_000]]);
    let ids = store.put_many(&blobs).unwrap();
    let expected: Vec<_> = blobs.iter().map(|bytes| PieceManifest::of_bytes(bytes).id()).collect();
    assert_eq!(ids, expected);
    assert!(ids.contains(&there));
    assert_eq!(store.list().len(), 143, "equal bytes are one blob");
    assert_eq!(fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
    drop(store);

    let store = open(folder.path());
    for (id, bytes) in ids.iter().zip(&blobs) {
        assert_eq!(fs::read(store.verified_path(*id).unwrap()).unwrap(), *bytes);
    }
    let quota = BlobLimits { quota_bytes: Some(store.used_bytes() + 10), free_bytes_min: 0 };
    drop(store);
    let store = BlobStore::open(folder.path(), quota).unwrap();
    let error = store.put_many(&[b"six by", b"twelve"]).unwrap_err();
    assert!(matches!(error, BlobError::Quota { needed_bytes: 12, .. }), "{error}");
    assert_eq!(store.list().len(), 143);
}

#[test]
fn a_folder_is_looked_at_while_its_owner_works() {
    let folder = tempfile::tempdir().unwrap();
    let other = BlobFolder::at(folder.path());
    assert_eq!(other.list().unwrap(), BlobListing::default(), "a folder that is not there has no blobs");
    let store = open(folder.path());
    let whole = bytes_of(3 * PIECE + 5, 1);
    let (whole_id, empty_id) = (store.put_bytes(&whole).unwrap(), store.put_bytes(b"").unwrap());
    let arriving = PieceManifest::of_bytes(&bytes_of(2 * PIECE, 2));
    let writer = store.writer(arriving.clone()).unwrap();
    writer.write_piece(0, &bytes_of(2 * PIECE, 2)[..PIECE]).unwrap();
    let half = folder.path().join("partial/put-half");
    fs::write(&half, "half").unwrap();

    let read = |id| {
        let mut bytes = Vec::new();
        let end = other.read::<FileError>(id, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        end.unwrap().map(|()| bytes)
    };
    let listing = other.list().unwrap();
    assert_eq!(listing.blobs, store.list(), "a transfer is no blob yet");
    assert_eq!((listing.leftovers, listing.strangers), (vec![half.clone()], vec![]));
    assert_eq!((read(whole_id), read(empty_id)), (Ok(whole), Ok(vec![])));
    assert_eq!(read(arriving.id()), Err(BlobFault::Missing));
    assert!(half.exists(), "nothing is cleared");

    flip_bit(&data_path(folder.path(), whole_id), 8 * PIECE as u64);
    assert!(matches!(read(whole_id), Err(BlobFault::Damaged(problem)) if problem.contains("piece 1")));
    assert!(store.has(whole_id), "nothing is moved");
    fs::remove_file(data_path(folder.path(), empty_id).with_extension("pieces")).unwrap();
    assert!(
        matches!(read(empty_id), Err(BlobFault::Damaged(problem)) if problem.contains("manifest is missing"))
    );
}

#[test]
fn only_what_nobody_reads_or_has_asked_for_is_removed_as_idle() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let id = store.put_bytes(&bytes_of(100, 1)).unwrap();
    let before = BootTime::now();
    let later = BootTime(before.0 + 3_600_000);
    assert!(!store.remove_idle(id, before).unwrap(), "it was just brought");
    let reader = store.reader(id).unwrap();
    assert!(!store.remove_idle(id, later).unwrap(), "it is being read");
    drop(reader);
    let loan = store.lend(id).unwrap();
    assert!(!store.remove_idle(id, later).unwrap(), "somebody counts on it");
    drop(loan);
    assert!(!store.remove_idle(id, before).unwrap(), "and did so until just now");
    assert!(store.remove_idle(id, later).unwrap() && store.lend(id).is_none());
    assert!(!store.remove_idle(id, later).unwrap() && !store.has(id));
    assert!(!data_path(folder.path(), id).exists());
}

#[test]
fn room_is_short_near_the_quota_and_near_the_watermark() {
    let folder = tempfile::tempdir().unwrap();
    let limits = BlobLimits { quota_bytes: Some(1000), free_bytes_min: 0 };
    let store = BlobStore::open(folder.path(), limits).unwrap();
    store.put_bytes(&bytes_of(890, 1)).unwrap();
    assert!(!store.is_short_of_room());
    store.put_bytes(&bytes_of(20, 2)).unwrap();
    assert!(store.is_short_of_room());
    let limits = BlobLimits { quota_bytes: None, free_bytes_min: u64::MAX / 2 };
    assert!(BlobStore::open(&folder.path().join("other"), limits).unwrap().is_short_of_room());
}
