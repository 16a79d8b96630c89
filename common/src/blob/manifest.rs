//! How a blob is cut into pieces, and what each of them hashes to.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::Path,
};

use crate::{
    digest::Digest,
    durable::{Context, FileError},
    faults,
    id::BlobId,
};

/// Smallest piece, the last one of a blob aside.
pub const PIECE_BYTES_MIN: u32 = 64 << 10;
/// Largest piece.
pub const PIECE_BYTES_MAX: u32 = 4 << 20;
/// How many pieces a blob has at most while the limits on their size allow it.
const PIECES_AIM: u64 = 512;
/// Largest blob: 256 GiB, well above any file of a checkpoint of the largest model.
pub const BLOB_BYTES_MAX: u64 = PIECES_MAX as u64 * PIECE_BYTES_MAX as u64;
/// Most pieces of a blob.
pub const PIECES_MAX: u32 = 65_536;
/// Longest encoding of a manifest: just above 2 MiB.
pub const MANIFEST_BYTES_MAX: usize = HEADER_BYTES + PIECES_MAX as usize * DIGEST_BYTES;

/// First bytes of an encoded manifest, with the version of the form.
const MAGIC: [u8; 4] = *b"HPM1";
const HEADER_BYTES: usize = 16;
const DIGEST_BYTES: usize = 32;

/// The pieces of a blob. Its encoding is canonical: one blob has one manifest, and one id.
///
/// Encoded: `HPM1`, piece size in bytes (u32), blob size in bytes (u64), then 32 bytes of BLAKE3 for each piece; numbers
/// are little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceManifest {
    size_bytes: u64,
    piece_bytes: u32,
    pieces: Vec<Digest>,
}

/// Why bytes are no manifest, or not those of the piece they claim to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not an encoded manifest at all.
    #[error("not a piece manifest: it does not start with a header of version 1")]
    Header,
    /// The blob would be too large.
    #[error("the blob has {size_bytes} bytes; the limit is {BLOB_BYTES_MAX}")]
    TooLarge {
        /// The size that the header names.
        size_bytes: u64,
    },
    /// The piece size does not follow from the blob's size.
    #[error("a blob of {size_bytes} bytes has pieces of {expected} bytes, not {found}")]
    PieceBytes {
        /// Size of the blob.
        size_bytes: u64,
        /// The size that its pieces have.
        expected: u32,
        /// The size that the header names.
        found: u32,
    },
    /// Too few or too many hashes.
    #[error("a blob of {size_bytes} bytes has a manifest of {expected} bytes, not {found}")]
    Length {
        /// Size of the blob.
        size_bytes: u64,
        /// Length of its manifest in bytes.
        expected: usize,
        /// Length that came, in bytes.
        found: usize,
    },
    /// There is no piece of this number.
    #[error("piece {index} does not exist; the blob has {count}")]
    NoSuchPiece {
        /// The number asked for.
        index: u32,
        /// How many there are.
        count: u32,
    },
    /// The bytes are not those of the piece.
    #[error("piece {index} does not match its hash ({found} of {expected} bytes)")]
    WrongPiece {
        /// The piece.
        index: u32,
        /// Its length in bytes.
        expected: u64,
        /// Length of what came, in bytes.
        found: u64,
    },
}

/// The size of the pieces of a blob of `size_bytes`: about a 512th of it, a power of two, within the limits.
fn piece_bytes_for(size_bytes: u64) -> u32 {
    let aim = size_bytes.div_ceil(PIECES_AIM).next_power_of_two();
    aim.clamp(PIECE_BYTES_MIN.into(), PIECE_BYTES_MAX.into()) as u32
}

impl PieceManifest {
    /// The manifest of bytes in memory.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let (size_bytes, piece_bytes) = (bytes.len() as u64, piece_bytes_for(bytes.len() as u64));
        let pieces = bytes.chunks(piece_bytes as usize).map(Digest::of).collect();
        Self { size_bytes, piece_bytes, pieces }
    }

    /// The manifest of a file, read once.
    pub fn of_file(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).context("open", path)?;
        let size_bytes = file.metadata().context("read the length of", path)?.len();
        Self::of_reader(file, size_bytes).context("read", path)
    }

    /// The manifest of what `reader` gives, which must be exactly `size_bytes`.
    pub fn of_reader(reader: impl Read, size_bytes: u64) -> io::Result<Self> {
        Self::of_reader_into(reader, size_bytes, |_| Ok(()))
    }

    /// The same, while each piece is also handed to `sink`.
    pub(super) fn of_reader_into(
        mut reader: impl Read,
        size_bytes: u64,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        if size_bytes > BLOB_BYTES_MAX {
            let too_large = ManifestError::TooLarge { size_bytes };
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, too_large));
        }
        let piece_bytes = piece_bytes_for(size_bytes);
        let mut manifest = Self { size_bytes, piece_bytes, pieces: Vec::new() };
        let mut buffer = vec![0; piece_bytes as usize];
        for index in 0..manifest.expected_pieces() {
            let range = manifest.range(index);
            let piece = &mut buffer[..(range.end - range.start) as usize];
            reader.read_exact(piece)?;
            manifest.pieces.push(Digest::of(piece));
            sink(piece)?;
        }
        if reader.read(&mut buffer[..1])? != 0 {
            return Err(io::Error::other(format!("it grew beyond {size_bytes} bytes while it was read")));
        }
        Ok(manifest)
    }

    /// Reads an encoded manifest from outside; nothing is taken on trust, and no more memory is used than it has bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let (header, hashes) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(ManifestError::Header)?;
        let (magic, header) = header.split_first_chunk::<4>().ok_or(ManifestError::Header)?;
        let (piece_bytes, header) = header.split_first_chunk::<4>().ok_or(ManifestError::Header)?;
        let size_bytes = header.first_chunk::<8>().ok_or(ManifestError::Header)?;
        let (found, size_bytes) = (u32::from_le_bytes(*piece_bytes), u64::from_le_bytes(*size_bytes));
        if *magic != MAGIC {
            return Err(ManifestError::Header);
        }
        if size_bytes > BLOB_BYTES_MAX {
            return Err(ManifestError::TooLarge { size_bytes });
        }
        let piece_bytes = piece_bytes_for(size_bytes);
        if found != piece_bytes {
            return Err(ManifestError::PieceBytes { size_bytes, expected: piece_bytes, found });
        }
        let mut manifest = Self { size_bytes, piece_bytes, pieces: Vec::new() };
        let expected = HEADER_BYTES + manifest.expected_pieces() as usize * DIGEST_BYTES;
        if bytes.len() != expected {
            return Err(ManifestError::Length { size_bytes, expected, found: bytes.len() });
        }
        let (hashes, _) = hashes.as_chunks::<DIGEST_BYTES>();
        manifest.pieces = hashes.iter().copied().map(Digest::from_bytes).collect();
        Ok(manifest)
    }

    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.pieces.len() * DIGEST_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(self.piece_bytes.to_le_bytes());
        bytes.extend(self.size_bytes.to_le_bytes());
        bytes.extend(self.pieces.iter().flat_map(Digest::as_bytes));
        bytes
    }

    /// The blob's name: the digest of the encoding.
    pub fn id(&self) -> BlobId {
        BlobId(Digest::of(&self.encode()))
    }

    /// Size of the blob.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Size of each piece but the last.
    pub fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    /// The hashes, in order.
    pub fn pieces(&self) -> &[Digest] {
        &self.pieces
    }

    /// How many pieces there are; 0 for an empty blob.
    pub fn piece_count(&self) -> u32 {
        self.pieces.len() as u32
    }

    /// Where piece `index` lies in the blob, in bytes.
    pub fn piece_range(&self, index: u32) -> Option<Range<u64>> {
        (index < self.piece_count()).then(|| self.range(index))
    }

    /// Checks that `bytes` are piece `index`.
    pub fn verify(&self, index: u32, bytes: &[u8]) -> Result<(), ManifestError> {
        let no_such = ManifestError::NoSuchPiece { index, count: self.piece_count() };
        let range = self.piece_range(index).ok_or(no_such)?;
        let (expected, found) = (range.end - range.start, bytes.len() as u64);
        // The length first: what is far too long is not even hashed.
        let is_it =
            || faults::strikes("mutant::hash_check") || Digest::of(bytes) == self.pieces[index as usize];
        if expected != found || !is_it() {
            return Err(ManifestError::WrongPiece { index, expected, found });
        }
        Ok(())
    }

    fn expected_pieces(&self) -> u32 {
        self.size_bytes.div_ceil(self.piece_bytes.into()) as u32
    }

    fn range(&self, index: u32) -> Range<u64> {
        let start = u64::from(index) * u64::from(self.piece_bytes);
        start..(start + u64::from(self.piece_bytes)).min(self.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn piece_sizes_follow_from_the_blob() {
        for (size_bytes, piece_bytes) in [
            (0, PIECE_BYTES_MIN),
            (1, PIECE_BYTES_MIN),
            (32 << 20, 64 << 10),
            ((32 << 20) + 1, 128 << 10),
            (100 << 20, 256 << 10),
            (2 << 30, PIECE_BYTES_MAX),
            (BLOB_BYTES_MAX, PIECE_BYTES_MAX),
        ] {
            assert_eq!(piece_bytes_for(size_bytes), piece_bytes, "{size_bytes}");
        }
    }

    #[test]
    fn an_id_is_for_ever() {
        let id = |bytes: &[u8]| PieceManifest::of_bytes(bytes).id().to_string();
        assert_eq!(id(b""), "eec50d42fa76d4a67dde8fc89f7735563f67dcadb1a87f4556da32be60858ff5");
        assert_eq!(id(b"hatchery"), "147d9d5c8139753ab4eed9c9f5eef2c3c61006ca4764f866ae893a02db1325f7");
    }

    #[test]
    fn a_manifest_that_lies_is_refused() {
        let good = PieceManifest::of_bytes(&vec![7; 200_000]).encode();
        let with = |at: usize, bytes: &[u8]| {
            let mut changed = good.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            PieceManifest::decode(&changed).unwrap_err()
        };
        assert_eq!(with(0, b"HPM2"), ManifestError::Header);
        assert!(matches!(with(4, &(128_u32 << 10).to_le_bytes()), ManifestError::PieceBytes { .. }));
        assert!(matches!(with(8, &u64::MAX.to_le_bytes()), ManifestError::TooLarge { .. }));
        assert!(matches!(with(8, &10_u64.to_le_bytes()), ManifestError::Length { expected: 48, .. }));
        assert!(matches!(with(8, &300_000_u64.to_le_bytes()), ManifestError::Length { expected: 176, .. }));
        assert_eq!(PieceManifest::decode(&good[..15]), Err(ManifestError::Header));
        let too_long = [good.clone(), vec![0; 32]].concat();
        assert!(matches!(PieceManifest::decode(&too_long), Err(ManifestError::Length { .. })));
    }

    #[test]
    fn a_reader_of_another_length_is_an_error() {
        for claimed in [9_u64, 11] {
            assert!(PieceManifest::of_reader(&[0_u8; 10][..], claimed).is_err());
        }
        let refused = PieceManifest::of_reader(io::empty(), BLOB_BYTES_MAX + 1).unwrap_err();
        assert!(refused.to_string().contains("the limit is 274877906944"), "{refused}");
    }

    proptest! {
        #[test]
        fn every_manifest_round_trips(size in 0..300_000_usize, seed in any::<u8>()) {
            let bytes: Vec<u8> = (0..size).map(|at| (at / 251) as u8 ^ seed).collect();
            let manifest = PieceManifest::of_bytes(&bytes);
            prop_assert_eq!(&PieceManifest::decode(&manifest.encode()).unwrap(), &manifest);
            let read = PieceManifest::of_reader(&bytes[..], bytes.len() as u64).unwrap();
            prop_assert_eq!(read.id(), manifest.id());
            for index in 0..manifest.piece_count() {
                let range = manifest.piece_range(index).unwrap();
                let piece = &bytes[range.start as usize..range.end as usize];
                prop_assert_eq!(manifest.verify(index, piece), Ok(()));
                prop_assert!(manifest.verify(index, &piece[1..]).is_err());
            }
            prop_assert_eq!(manifest.piece_range(manifest.piece_count()), None);
        }

        #[test]
        fn no_bytes_upset_the_parser(bytes in prop::collection::vec(any::<u8>(), 0..200), valid in any::<bool>()) {
            let bytes = if valid { [&MAGIC[..], &bytes].concat() } else { bytes };
            if let Ok(manifest) = PieceManifest::decode(&bytes) {
                prop_assert_eq!(manifest.encode(), bytes);
            }
        }
    }
}
