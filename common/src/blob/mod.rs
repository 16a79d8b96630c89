//! Blobs: immutable bytes, moved and checked in pieces, named by the digest of their piece manifest.
//!
//! A [`PieceManifest`] says how long a blob is and what each of its pieces hashes to. A [`BlobStore`] keeps blobs in a
//! folder, gives out only bytes that it has checked, and lets a [`BlobWriter`] collect the pieces of one in any order,
//! over any number of restarts.
//!
//! ```text
//! 3f/<id>.data          the bytes            3f/<id>.pieces        the manifest's encoding
//! partial/<id>.*        transfers that are not finished; never given out
//! quarantine/<id>.*     the last few blobs that were found damaged, for whoever looks into the disk
//! ```
//!
//! No path is ever built from text that came from outside: ids are 32 bytes, written in hexadecimal by us.

mod batch;
mod error;
mod folder;
mod layout;
mod manifest;
mod piece_set;
mod reader;
mod scan;
mod store;
mod transfer;
mod writer;

pub use error::BlobError;
pub use folder::{BlobFault, BlobFolder, BlobListing};
pub use manifest::{
    BLOB_BYTES_MAX, MANIFEST_BYTES_MAX, ManifestError, PIECE_BYTES_MAX, PIECE_BYTES_MIN, PIECES_MAX,
    PieceManifest,
};
pub use piece_set::PieceSet;
pub use reader::BlobReader;
pub use store::{BlobInfo, BlobLimits, BlobLoan, BlobStore};
pub use writer::BlobWriter;
