//! Programs of this build.

use std::{
    env,
    ffi::OsStr,
    fs,
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

/// Lists the processes whose command line contains every one of `parts`.
pub fn processes_with(parts: &[&str]) -> Vec<u32> {
    let contains = |path: &Path| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        parts.iter().all(|part| line.contains(part))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| contains(&entry.path()))
        .filter_map(|entry| OsStr::to_str(&entry.file_name()).and_then(|name| name.parse().ok()))
        .collect()
}
