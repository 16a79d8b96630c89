//! A libtorch of the user's own, named by `LIBTORCH`: nothing is fetched, but a wrong version is refused.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::layout::TORCH_VERSION;

/// The folder the user set, if it is not the one that `.cargo/config.toml` sets for everything cargo runs.
pub(crate) fn folder(variable: Option<OsString>, default: &Path) -> Result<Option<PathBuf>> {
    let Some(value) = variable else { return Ok(None) };
    if value.is_empty() {
        bail!("LIBTORCH is empty: unset it to fetch libtorch, or set it to a libtorch folder");
    }
    let folder = PathBuf::from(value);
    let is_default = folder == default
        || folder.canonicalize().ok().zip(default.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    Ok((!is_default).then_some(folder))
}

/// Checks that `folder` holds a libtorch of the right version, with libraries and headers; returns the version.
pub(crate) fn check(folder: &Path) -> Result<String> {
    let shown = folder.display();
    for part in ["lib", "include"] {
        if !folder.join(part).is_dir() {
            bail!(
                "LIBTORCH is {shown}, which has no folder {part}/: unset it to have libtorch {TORCH_VERSION} fetched"
            );
        }
    }
    let version = version(folder).with_context(|| {
        format!("cannot tell the version of the libtorch in {shown}: unset LIBTORCH to have {TORCH_VERSION} fetched")
    })?;
    if version.split('+').next() != Some(TORCH_VERSION) {
        bail!(
            "LIBTORCH is {shown}, which is version {version}; {TORCH_VERSION} is needed: \
             unset LIBTORCH to have it fetched, or set it to a libtorch {TORCH_VERSION}"
        );
    }
    Ok(version)
}

/// The version as one of three files tells it: libtorch's archive, the wheel and the headers each have their own.
fn version(folder: &Path) -> Option<String> {
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
    read("build-version")
        .map(|text| text.trim().to_owned())
        .or_else(|| from_python(&read("version.py")?))
        .or_else(|| from_header(&read("include/torch/headeronly/version.h")?))
        .filter(|version| !version.is_empty())
}

fn from_python(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("__version__ ="))?;
    Some(line.split_once('=')?.1.trim().trim_matches(['\'', '"']).to_owned())
}

fn from_header(text: &str) -> Option<String> {
    let part = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("#define TORCH_VERSION_{name} ")))?;
        Some(line.split_whitespace().nth(2)?.to_owned())
    };
    Some(format!("{}.{}.{}", part("MAJOR")?, part("MINOR")?, part("PATCH")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libtorch(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("lib")).unwrap();
        std::fs::create_dir_all(folder.path().join("include/torch/headeronly")).unwrap();
        for (file, text) in files {
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        folder
    }

    #[test]
    fn each_of_the_three_files_tells_the_version() {
        let archive = libtorch(&[("build-version", "2.11.0+cpu\n")]);
        assert_eq!(check(archive.path()).unwrap(), "2.11.0+cpu");
        let wheel = libtorch(&[("version.py", "__all__ = ['__version__']\n__version__ = '2.11.0+cu130'\n")]);
        assert_eq!(check(wheel.path()).unwrap(), "2.11.0+cu130");
        let header =
            "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 11\n#define TORCH_VERSION_PATCH 0\n";
        let headers = libtorch(&[("include/torch/headeronly/version.h", header)]);
        assert_eq!(check(headers.path()).unwrap(), "2.11.0");
    }

    #[test]
    fn a_wrong_version_is_refused_with_what_to_do() {
        let old = libtorch(&[("build-version", "2.1.0")]);
        let message = check(old.path()).unwrap_err().to_string();
        assert!(message.contains("version 2.1.0; 2.11.0 is needed: unset LIBTORCH"), "{message}");
        let longer = libtorch(&[("build-version", "2.11.01")]);
        assert!(check(longer.path()).is_err());
        let silent = libtorch(&[]);
        assert!(check(silent.path()).unwrap_err().to_string().contains("cannot tell the version"));
        let empty = tempfile::tempdir().unwrap();
        assert!(check(empty.path()).unwrap_err().to_string().contains("no folder lib/"));
    }

    #[test]
    fn what_cargo_sets_is_not_the_users() {
        let default = Path::new("/clone/libtorch/torch");
        assert_eq!(folder(None, default).unwrap(), None);
        assert_eq!(folder(Some("/clone/libtorch/torch".into()), default).unwrap(), None);
        assert_eq!(folder(Some("/opt/torch".into()), default).unwrap(), Some("/opt/torch".into()));
        assert!(folder(Some("".into()), default).unwrap_err().to_string().contains("unset it"));
    }
}
