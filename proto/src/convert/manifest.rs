//! Manifests travel as their canonical bytes, JSON, so that their digests can be checked.

use hatchery_common::{
    checkpoint::CheckpointManifest, dataset::DatasetManifest, digest::Digest, field::FieldError,
    id::CheckpointId,
};

use super::fields::at_most;

/// Longest dataset manifest, in bytes: 32 MiB.
pub const DATASET_MANIFEST_BYTES_MAX: usize = 32 << 20;
/// Longest checkpoint manifest, in bytes.
pub const CHECKPOINT_MANIFEST_BYTES_MAX: usize = 64 << 10;

/// A dataset manifest as the wire has it.
pub fn dataset_manifest_bytes(manifest: &DatasetManifest) -> Vec<u8> {
    serde_json::to_vec(manifest).expect("a list of paths and numbers is always JSON")
}

/// Reads a message's field `manifest` as a dataset manifest, and checks it.
pub fn dataset_manifest(bytes: &[u8]) -> Result<DatasetManifest, FieldError> {
    at_most("manifest", bytes.len(), DATASET_MANIFEST_BYTES_MAX, "bytes")?;
    serde_json::from_slice(bytes)
        .map_err(|error| FieldError::new("manifest", format!("is not a dataset manifest: {error}")))
}

/// A checkpoint manifest as the wire has it: its canonical bytes.
pub fn checkpoint_manifest_bytes(manifest: &CheckpointManifest) -> Vec<u8> {
    serde_json::to_vec(manifest).expect("a manifest of text and numbers is always JSON")
}

/// Reads a message's field `manifest` as a checkpoint manifest, and checks it. The bytes must be the canonical ones, so
/// that the id is their digest.
pub fn checkpoint_manifest(bytes: &[u8]) -> Result<(CheckpointId, CheckpointManifest), FieldError> {
    at_most("manifest", bytes.len(), CHECKPOINT_MANIFEST_BYTES_MAX, "bytes")?;
    let manifest: CheckpointManifest = serde_json::from_slice(bytes)
        .map_err(|error| FieldError::new("manifest", format!("is not a checkpoint manifest: {error}")))?;
    manifest.check().map_err(|error| error.within("manifest"))?;
    let id = CheckpointId(Digest::of(bytes));
    if manifest.id() != id {
        return Err(FieldError::new("manifest", "is not in its canonical form"));
    }
    Ok((id, manifest))
}
