//! What is said of blobs.

use hatchery_common::{
    blob::{
        BLOB_BYTES_MAX, MANIFEST_BYTES_MAX, PIECE_BYTES_MAX, PIECE_BYTES_MIN, PIECES_MAX, PieceManifest,
        PieceSet,
    },
    digest::Digest,
    id::BlobId,
};

/// A piece manifest.
pub(crate) fn piece_manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = PieceManifest::decode(bytes) else { return false };
    assert_eq!(manifest.encode(), bytes, "a blob has one manifest");
    assert_eq!(manifest.id(), BlobId(Digest::of(bytes)));
    assert!(bytes.len() <= MANIFEST_BYTES_MAX && manifest.size_bytes() <= BLOB_BYTES_MAX);
    assert!(manifest.piece_count() <= PIECES_MAX);
    assert!((PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&manifest.piece_bytes()));
    let mut end = 0;
    for index in 0..manifest.piece_count() {
        let range = manifest.piece_range(index).expect("each piece has its place");
        assert_eq!(range.start, end, "pieces leave nothing out and do not overlap");
        assert!(range.end > range.start && range.end - range.start <= u64::from(manifest.piece_bytes()));
        end = range.end;
    }
    assert_eq!(end, manifest.size_bytes());
    assert_eq!(manifest.piece_range(manifest.piece_count()), None);
    true
}

/// Manifests of blobs of several sizes.
pub(crate) fn piece_manifests() -> Vec<Vec<u8>> {
    let sizes = [0, 1, 65_536, 65_537, 1_000_000];
    sizes.map(|size| PieceManifest::of_bytes(&vec![7; size]).encode()).to_vec()
}

/// Which pieces somebody has: four bytes that say of how many, then the set.
pub(crate) fn piece_set(bytes: &[u8]) -> bool {
    let Some((count, bytes)) = bytes.split_first_chunk::<4>() else { return false };
    let count = u32::from_le_bytes(*count) % (PIECES_MAX + 1);
    let Some(set) = PieceSet::from_bytes(count, bytes) else { return false };
    assert_eq!(set.to_bytes(), bytes, "a set has one form");
    let listed: Vec<u32> = set.indexes().collect();
    assert!(listed.is_sorted() && listed.iter().all(|index| *index < count && set.has(*index)));
    assert_eq!((set.count(), set.held() as usize), (count, listed.len()));
    let missing = set.missing();
    assert!(missing.intersection(&set).is_empty() && missing.union(&set).is_full());
    true
}

/// Sets of several sizes.
pub(crate) fn piece_sets() -> Vec<Vec<u8>> {
    let bytes = |set: PieceSet| [set.count().to_le_bytes().to_vec(), set.to_bytes()].concat();
    let mut some = PieceSet::empty(200);
    for index in [0, 63, 64, 199] {
        some.insert(index);
    }
    vec![bytes(PieceSet::empty(0)), bytes(PieceSet::full(9)), bytes(PieceSet::full(64)), bytes(some)]
}
