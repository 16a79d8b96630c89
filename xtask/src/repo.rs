//! Where things are in the clone.

use std::path::PathBuf;

/// The root of the clone: the folder above this crate.
pub(crate) fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}

/// The git-ignored folder that `setup` fills: `torch/` and `nvidia/`, laid out as the wheels lay them.
pub(crate) fn libtorch() -> PathBuf {
    root().join("libtorch")
}
