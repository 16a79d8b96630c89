//! Programs of this build.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// Where cargo has put a program: in the folder of this one, or in the folder above where this is a test. An example is
/// `examples/NAME`.
pub fn binary(name: impl AsRef<Path>) -> Result<PathBuf> {
    let own = env::current_exe().context("this program has no path")?;
    let folder = own.parent().context("a program lies in a folder")?;
    let profile = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = profile.join(name);
    ensure!(path.is_file(), "{} is not built", path.display());
    Ok(path)
}
