//! Settings in layers, and what is said when one is wrong.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::{collections::BTreeMap, ffi::OsString, fs, path::PathBuf};

use hatchery_common::settings::{Layers, Resolved, SettingsError, Source};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Settings {
    listen: String,
    advertise: Vec<String>,
    lease_secs: u64,
    ratio: f64,
    verbose: bool,
    name: Option<String>,
    quota_bytes: Option<u64>,
    ports: Vec<u16>,
    blobs: Blobs,
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Blobs {
    folder: Option<PathBuf>,
    free_bytes_min: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7600".into(),
            advertise: Vec::new(),
            lease_secs: 15,
            ratio: 0.5,
            verbose: false,
            name: None,
            quota_bytes: None,
            ports: Vec::new(),
            blobs: Blobs { folder: None, free_bytes_min: 1 << 33 },
            labels: BTreeMap::new(),
        }
    }
}

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables.iter().map(|(name, text)| (name.into(), text.into())).collect()
}

fn from_environment(variables: &[(&str, &str)]) -> Result<Resolved<Settings>, SettingsError> {
    Layers::new("agent").environment(environment(variables)).resolve()
}

fn from_text(text: &str) -> Result<Resolved<Settings>, SettingsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    fs::write(&path, text).unwrap();
    Layers::new("agent").file(path).resolve()
}

#[test]
fn the_later_layer_wins_key_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    fs::write(
        &path,
        "listen = '0.0.0.0:1'\nlease_secs = 20\nratio = 1\n[blobs]\nfree_bytes_min = 7\n[labels]\n'a.b' = 'c'",
    )
    .unwrap();
    let resolved: Resolved<Settings> = Layers::new("agent")
        .file_if_present(folder.path().join("none.toml"))
        .file(&path)
        .environment(environment(&[
            ("HATCHERY_AGENT__LEASE_SECS", "30"),
            ("HATCHERY_AGENT__NAME", "77"),
            ("HATCHERY_AGENT__QUOTA_BYTES", "1000"),
            ("HATCHERY_AGENT__ADVERTISE", "a:1, b:2"),
            ("HATCHERY_AGENT__PORTS", "1,2"),
            ("HATCHERY_AGENT__BLOBS__FOLDER", "/srv/blobs"),
            ("HATCHERY_AGENT__LABELS__ROOM", "attic"),
            ("HATCHERY_COORDINATOR__NO_MATTER", "another section"),
            ("HATCHERY_LOG", "debug"),
            ("HATCHERY_AGENT_SERVICE_HOST", "10.0.0.1"),
            ("PATH", "/bin"),
        ]))
        .flag("--verbose", "verbose", Some(true))
        .flag("--free-bytes", "blobs.free_bytes_min", Some(8))
        .flag("--listen", "listen", None::<String>)
        .resolve()
        .unwrap_or_else(|error| panic!("{error}"));
    let expected = Settings {
        listen: "0.0.0.0:1".into(),
        advertise: vec!["a:1".into(), "b:2".into()],
        lease_secs: 30,
        ratio: 1.0,
        verbose: true,
        name: Some("77".into()),
        quota_bytes: Some(1000),
        ports: vec![1, 2],
        blobs: Blobs { folder: Some("/srv/blobs".into()), free_bytes_min: 8 },
        labels: [("a.b".to_owned(), "c".to_owned()), ("room".to_owned(), "attic".to_owned())].into(),
    };
    assert_eq!(resolved.value, expected);
    let source = |key: &str| resolved.provenance[key].clone();
    assert_eq!(source("listen"), Source::File(path.clone()));
    assert_eq!(source("lease_secs"), Source::Environment("HATCHERY_AGENT__LEASE_SECS".into()));
    assert_eq!(source("blobs.free_bytes_min"), Source::Flag("--free-bytes".into()));
    assert_eq!(source(r#"labels."a.b""#), Source::File(path));
    assert_eq!(source("labels.room"), Source::Environment("HATCHERY_AGENT__LABELS__ROOM".into()));
}

#[test]
fn what_is_printed_gives_the_same_settings_again() {
    let text = "name = 'box'\nadvertise = ['a:1']\n[labels]\n'a.b' = 'say \"so\"'\nroom = 'attic'";
    let resolved = from_text(text).unwrap();
    let printed = resolved.to_toml();
    assert_eq!(from_text(&printed).unwrap().value, resolved.value, "{printed}");
    assert!(printed.contains("\nlease_secs = 15  # from default\n"), "{printed}");
    assert!(printed.contains("\n# quota_bytes is not set  # from default\n"), "{printed}");
    assert!(printed.contains("\nname = \"box\"  # from file "), "{printed}");
    let json = resolved.to_json();
    assert_eq!(json["blobs.free_bytes_min"]["value"], 1_u64 << 33);
    assert_eq!(json["lease_secs"]["source"], "default");
    assert_eq!(json["labels.room"]["value"], "attic");
}

#[test]
fn an_unknown_key_suggests_the_near_one() {
    let message = |result: Result<Resolved<Settings>, SettingsError>| result.unwrap_err().to_string();
    let error = message(from_text("lease_sec = 3"));
    assert!(error.starts_with("lease_sec: unknown key; did you mean `lease_secs`? (from file "), "{error}");
    let error = message(from_text("[blobs]\nfree_byte_min = 3"));
    assert!(error.starts_with("blobs.free_byte_min: unknown key; did you mean `free_bytes_min`?"), "{error}");
    assert_eq!(
        message(from_environment(&[("HATCHERY_AGENT__LEASE_SEC", "3")])),
        "lease_sec: unknown key; did you mean `lease_secs`? (from environment HATCHERY_AGENT__LEASE_SEC)"
    );
    assert_eq!(
        message(from_environment(&[("HATCHERY_AGENTS__LEASE_SECS", "3")])),
        "environment variable HATCHERY_AGENTS__LEASE_SECS: unknown section; did you mean HATCHERY_AGENT__LEASE_SECS?"
    );
    for miswritten in ["HATCHERY_AGENT_BLOBS_FREE_BYTES_MIN", "HATCHERY_BLOBS_FREE_BYTES_MIN"] {
        assert_eq!(
            message(from_environment(&[(miswritten, "3")])),
            format!(
                "environment variable {miswritten}: unknown; did you mean HATCHERY_AGENT__BLOBS__FREE_BYTES_MIN?"
            )
        );
    }
}

#[test]
fn a_wrong_type_names_the_key_and_where_it_came_from() {
    let message = |result: Result<Resolved<Settings>, SettingsError>| result.unwrap_err().to_string();
    for text in ["lease_secs = '15'", "lease_secs = 1.5", "lease_secs = -1", "lease_secs = true"] {
        let error = message(from_text(text));
        assert!(error.starts_with("lease_secs: invalid ") && error.contains("(from file "), "{error}");
    }
    let error = message(from_text("[blobs]\nfree_bytes_min = 'much'"));
    assert!(
        error.starts_with("blobs.free_bytes_min: invalid type: string \"much\", expected u64"),
        "{error}"
    );
    let error = message(from_text("ports = [1, 70000]"));
    assert!(error.starts_with("ports[1]: ") && error.contains("(from file "), "{error}");
    let error = message(from_text("blobs = 3"));
    assert!(error.starts_with("blobs: ") && error.contains("(from file "), "{error}");
    let error = message(from_environment(&[("HATCHERY_AGENT__LEASE_SECS", "soon")]));
    assert!(
        error.starts_with("lease_secs: invalid type: string \"soon\"")
            && error.ends_with("(from environment HATCHERY_AGENT__LEASE_SECS)"),
        "{error}"
    );
    let flags = Layers::new("agent").flag("--lease", "lease_secs", Some("x")).resolve::<Settings>();
    assert!(message(flags).ends_with("(from flag --lease)"));
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_an_error() {
    let error = Layers::new("agent").file("/nowhere/agent.toml").resolve::<Settings>().unwrap_err();
    assert!(error.to_string().starts_with("cannot read /nowhere/agent.toml: "), "{error}");
    let error = from_text("lease_secs = ").unwrap_err();
    assert!(matches!(error, SettingsError::Syntax { .. }) && error.to_string().contains("line 1"), "{error}");
}
