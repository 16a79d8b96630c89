//! Settings in layers: defaults, then a file, then the environment, then flags; the later wins, key by key.
//!
//! | layer | how a key is written there |
//! |---|---|
//! | file | TOML, keys at the top level; one file for each section |
//! | environment | `HATCHERY_<SECTION>__<KEY>`, tables by further `__`: `HATCHERY_COORDINATOR__LISTEN`, `HATCHERY_AGENT__LABELS__ROOM`. A list is comma-separated, or a TOML array |
//! | flag | whatever the program's own flag is called |
//!
//! A key that nobody knows is an error that suggests the near one. Variables without `__` (`HATCHERY_HOME`,
//! `HATCHERY_LOG`, `HATCHERY_TRAINER`, what an orchestrator injects) are no settings and are left alone, unless one is a
//! setting with its underscores miswritten.
//!
//! The settings themselves are any struct with `Default`, `Serialize` and `Deserialize`; its default value also says
//! which keys exist. Names end in their unit: `lease_secs`, `quota_bytes`.

mod environment;
mod error;
mod layers;
mod render;

use std::{collections::BTreeMap, fmt, path::PathBuf};

pub use error::SettingsError;
pub use layers::Layers;

/// Largest settings file.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the value of a key came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said otherwise.
    Default,
    /// A file.
    File(PathBuf),
    /// A variable of the environment.
    Environment(String),
    /// A flag, as it is written on the command line.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Settings, and where each of them came from.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    /// The settings.
    pub value: T,
    /// The source of each key, by its dotted path.
    pub provenance: BTreeMap<String, Source>,
}
