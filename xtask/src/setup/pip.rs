//! pip as the user has set it up: its configuration, read by asking pip, and `pip download` where nothing else works.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Prints where pip looks when nobody says otherwise.
const PRINT_DEFAULT_INDEX: &str = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)";

/// Python that wheels are taken for. The C++ libraries are the same in all of them.
pub(crate) const PYTHON_TAG: &str = "cp313";
const PYTHON_VERSION: &str = "3.13";

/// The part of pip's configuration that says how to reach a package index.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct PipConfig {
    /// Index roots, in the order in which they are asked.
    pub(crate) indexes: Vec<String>,
    /// PEM file with the certificate authorities to trust instead of the built-in ones.
    pub(crate) certificates: Option<PathBuf>,
    /// Proxy for all requests.
    pub(crate) proxy: Option<String>,
    /// Hosts (`host` or `host:port`) whose certificate is not checked.
    pub(crate) trusted_hosts: Vec<String>,
    /// pip was told to use no index: only `pip download` can find the wheels.
    pub(crate) no_index: bool,
}

impl PipConfig {
    /// Reads the configuration: environment variables, then what `pip config list` prints (nothing without pip).
    pub(crate) fn read() -> Self {
        let listing = python(&["-m", "pip", "config", "list"]);
        let default_index = python(&["-c", PRINT_DEFAULT_INDEX]);
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::from_sources(&listing, default_index.trim(), variable)
    }

    /// The same from given sources: the listing's lines are `section.key='value'`.
    fn from_sources(listing: &str, default_index: &str, variable: impl Fn(&str) -> Option<String>) -> Self {
        let settings = parse_listing(listing);
        let setting = |key: &str| {
            variable(&format!("PIP_{}", key.to_uppercase().replace('-', "_"))).or_else(|| {
                [":env:", "download", "install", "global"]
                    .iter()
                    .find_map(|section| settings.get(&format!("{section}.{key}")).cloned())
            })
        };
        let words = |text: Option<String>| -> Vec<String> {
            text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
        };
        let mut indexes = vec![setting("index-url").unwrap_or_else(|| default_index.to_owned())];
        indexes.extend(words(setting("extra-index-url")));
        let certificates = setting("cert").or_else(|| {
            ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"].iter().find_map(|name| variable(name))
        });
        Self {
            indexes: indexes
                .into_iter()
                .map(|index| index.trim_end_matches('/').to_owned())
                .filter(|index| !index.is_empty())
                .collect(),
            certificates: certificates.map(PathBuf::from),
            proxy: setting("proxy"),
            trusted_hosts: words(setting("trusted-host")),
            no_index: setting("no-index")
                .is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "no" | "off")),
        }
    }
}

/// What python prints; nothing if it is not there or fails.
fn python(arguments: &[&str]) -> String {
    let output = Command::new("python3").args(arguments).output().ok();
    let output = output.filter(|output| output.status.success());
    output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

fn parse_listing(listing: &str) -> HashMap<String, String> {
    listing
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.trim().to_owned(), python_string(value.trim())))
        .collect()
}

/// The text of a Python string literal as `repr` writes it; anything else as it stands.
fn python_string(literal: &str) -> String {
    let inner = ['\'', '"'].iter().find_map(|&quote| literal.strip_prefix(quote)?.strip_suffix(quote));
    let Some(inner) = inner else { return literal.to_owned() };
    let mut text = String::new();
    let mut chars = inner.chars();
    while let Some(char) = chars.next() {
        match (char, char == '\\') {
            (_, true) => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(other) => text.push(other),
                None => text.push('\\'),
            },
            (plain, false) => text.push(plain),
        }
    }
    text
}

/// Has pip itself download the wheel of `requirement` (as `torch==2.11.0`) into `folder`; returns the wheel's path.
/// The Python that is here is asked first: a folder of wheels laid by for it may hold no others.
pub(crate) fn download(requirement: &str, folder: &Path) -> Result<PathBuf> {
    let is_done = download_as(requirement, folder, &[])?
        || download_as(requirement, folder, &["--implementation=cp", "--python-version", PYTHON_VERSION])?;
    if !is_done {
        bail!("`python3 -m pip download {requirement}` failed: see its message above");
    }
    let name = requirement.split(['=', '[']).next().unwrap_or(requirement).replace('-', "_").to_lowercase();
    let wheels = std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    wheels
        .filter(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .find(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            file.split('-').next() == Some(&name)
        })
        .with_context(|| {
            format!("pip downloaded {requirement}, but there is no wheel in {}", folder.display())
        })
}

fn download_as(requirement: &str, folder: &Path, python: &[&str]) -> Result<bool> {
    let status = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest"])
        .arg(folder)
        .args(python)
        .arg(requirement)
        .status()
        .context("cannot start python3: install python3 with pip (`cargo xtask setup` says how)")?;
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listing: &str, variables: &[(&str, &str)]) -> PipConfig {
        PipConfig::from_sources(listing, "https://usual/simple/", |name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_settings_it_is_pips_own() {
        assert_eq!(
            config("", &[]),
            PipConfig { indexes: vec!["https://usual/simple".into()], ..PipConfig::default() }
        );
    }

    #[test]
    fn the_listing_is_read_with_its_quotes() {
        let listing = "global.index-url='https://mirror/simple/'\n\
                       global.extra-index-url='\\nhttps://a/simple\\nhttps://b/simple'\n\
                       global.cert='/etc/ca.pem'\n\
                       global.proxy=\"http://it's:8080\"\n\
                       install.trusted-host='mirror mirror2:80'\n\
                       global.no-index='true'\n";
        let read = config(listing, &[]);
        assert_eq!(read.indexes, ["https://mirror/simple", "https://a/simple", "https://b/simple"]);
        assert_eq!(read.certificates, Some(PathBuf::from("/etc/ca.pem")));
        assert_eq!(read.proxy.as_deref(), Some("http://it's:8080"));
        assert_eq!(read.trusted_hosts, ["mirror", "mirror2:80"]);
        assert!(read.no_index);
    }

    #[test]
    fn the_nearer_setting_wins() {
        let listing = "global.index-url='https://global'\ndownload.index-url='https://download'\n";
        assert_eq!(config(listing, &[]).indexes, ["https://download"]);
        assert_eq!(config(listing, &[("PIP_INDEX_URL", "https://variable/")]).indexes, ["https://variable"]);
        assert_eq!(config("", &[("SSL_CERT_FILE", "/s.pem")]).certificates, Some("/s.pem".into()));
        let both = config("global.cert='/pip.pem'", &[("SSL_CERT_FILE", "/s.pem")]);
        assert_eq!(both.certificates, Some("/pip.pem".into()));
    }
}
