//! What the demo trains on.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// What `hatchery submit` is given: a file or folder, and a glob for a folder of which only a part is meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Corpus {
    pub(crate) path: PathBuf,
    /// Which files of it; none: all.
    pub(crate) include: Option<&'static str>,
}

/// The user's choice; or the READMEs and docs of all crates that cargo has unpacked on this machine.
pub(crate) fn choose(chosen: Option<&Path>, cargo_home: &Path) -> Result<Corpus> {
    if let Some(path) = chosen {
        return Ok(Corpus { path: std::path::absolute(path)?, include: None });
    }
    let path = cargo_home.join("registry").join("src");
    if !path.is_dir() {
        bail!(
            "there are no unpacked crates in {}: give a file or folder of text with --data",
            path.display()
        );
    }
    Ok(Corpus { path, include: Some("**/*.md") })
}

/// Where cargo keeps what it has fetched.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    let set = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    match set.or_else(|| std::env::home_dir().map(|home| home.join(".cargo"))) {
        Some(folder) => Ok(folder),
        None => {
            bail!("there is neither CARGO_HOME nor a home folder: give a file or folder of text with --data")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_choice_goes_before_cargos_crates() {
        let cargo_home = tempfile::tempdir().unwrap();
        let missing = choose(None, cargo_home.path()).unwrap_err().to_string();
        assert!(missing.contains("--data"), "{missing}");

        let source = cargo_home.path().join("registry/src");
        std::fs::create_dir_all(&source).unwrap();
        let usual = choose(None, cargo_home.path()).unwrap();
        assert_eq!(usual, Corpus { path: source, include: Some("**/*.md") });
        let own = choose(Some(Path::new("/notes")), cargo_home.path()).unwrap();
        assert_eq!(own, Corpus { path: "/notes".into(), include: None });
    }
}
