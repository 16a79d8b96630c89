//! Datasets: an immutable, content-addressed list of files, read as one corpus of bytes.
//!
//! The corpus is the files' bytes in the order of their paths (compared byte by byte), joined by [`SEPARATOR`]. A
//! dataset of one file is that file's bytes and nothing else.

mod hash;
mod manifest;
mod scan;

pub use hash::{HashError, hash_scan};
pub use manifest::{DatasetFile, DatasetManifest};
pub use scan::{DatasetError, Scan, SourceFile, scan};

/// What stands between two files of a corpus: an empty line.
pub const SEPARATOR: &[u8] = b"\n\n";

/// Most files in a dataset.
pub const FILES_MAX: usize = 100_000;

/// Largest corpus, in bytes.
pub const CORPUS_BYTES_MAX: u64 = 1 << 40;
