//! The edge: a job's spec as another program wrote it, which may be newer or older.
//!
//! A spec is one serialization everywhere: JSON, on the wire, in the store, in events and in an attempt's folder. Versions
//! that differ understand each other as long as nobody uses what one of them does not know:
//!
//! - a key that is absent has its default;
//! - a key, or a word in its value, that is not known here is refused by its name, never dropped;
//! - a key that is added is left out while it has its default (`skip_serializing_if`), so that it troubles only those who
//!   use it. That default may never change: older files and rows mean it. Keys of the first version are always written.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::JobSpec;
use crate::{field::FieldError, model::RawModelConfig};

/// Longest JSON of a spec, in bytes: several thousand names of nodes.
pub const SPEC_BYTES_MAX: usize = 256 << 10;
/// Most parts of a spec that are left out where it is read in part.
const PARTS_LEFT_OUT_MAX: usize = 64;

/// The program that reads, as it is called in what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A coordinator, that is given a job.
    Coordinator,
    /// An agent, that is given an attempt.
    Agent,
    /// A person's command, that is shown a job.
    CommandLine,
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coordinator => "coordinator",
            Self::Agent => "agent",
            Self::CommandLine => "hatchery",
        })
    }
}

/// Why a spec cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A key is not known to this version.
    #[error(
        "this {reader} does not know `{field}`: it is of version {}; upgrade it, or leave the key out",
        env!("CARGO_PKG_VERSION")
    )]
    UnknownKey {
        /// Its dotted path: `train.label_smoothing`.
        field: String,
        /// Who reads.
        reader: Reader,
    },
    /// A key is known, but not the word that it is set to.
    #[error(
        "this {reader} does not know `{word}` for `{field}`: it is of version {}; upgrade it, or choose another value",
        env!("CARGO_PKG_VERSION")
    )]
    UnknownWord {
        /// The key's dotted path: `train.precision`.
        field: String,
        /// The word.
        word: String,
        /// Who reads.
        reader: Reader,
    },
    /// A value is wrong; the field is named by its dotted path from `spec` on.
    #[error(transparent)]
    Wrong(#[from] FieldError),
}

impl SpecError {
    /// The same as an error of a field.
    pub fn into_field(self) -> FieldError {
        match self {
            Self::Wrong(error) => error,
            unknown => FieldError::new("spec", unknown),
        }
    }
}

impl JobSpec {
    /// The spec's one serialization.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self)
            .expect("a spec is made of names, words and finite numbers, which are always JSON")
    }

    /// Reads and checks all of a spec.
    pub fn read(json: &[u8], reader: Reader) -> Result<Self, SpecError> {
        from_value(&parse(json)?).map_err(|fault| fault.told(reader))
    }

    /// Reads a spec to be shown: what is not known here, or wrong by this version's rules, is left out and told of.
    pub fn read_in_part(json: &[u8], reader: Reader) -> Result<(Self, Vec<SpecError>), SpecError> {
        let mut value = parse(json)?;
        let mut left_out = Vec::new();
        loop {
            match from_value(&value) {
                Ok(spec) => return Ok((spec, left_out)),
                Err(fault) if left_out.len() < PARTS_LEFT_OUT_MAX && remove(&mut value, &fault.at) => {
                    left_out.push(fault.told(reader));
                }
                Err(fault) => return Err(fault.told(reader)),
            }
        }
    }
}

fn parse(json: &[u8]) -> Result<Value, FieldError> {
    if json.len() > SPEC_BYTES_MAX {
        let problem = format!("has {} bytes, more than the limit of {SPEC_BYTES_MAX}", json.len());
        return Err(FieldError::new("spec", problem));
    }
    serde_json::from_slice(json).map_err(|error| FieldError::new("spec", format!("is not JSON: {error}")))
}

/// What is wrong, and at which keys from the outermost in.
struct Fault {
    at: Vec<String>,
    what: What,
}

enum What {
    UnknownKey,
    UnknownWord(String),
    Wrong(String),
}

impl Fault {
    fn told(self, reader: Reader) -> SpecError {
        let field = self.at.join(".");
        match self.what {
            What::UnknownKey => SpecError::UnknownKey { field, reader },
            What::UnknownWord(word) => SpecError::UnknownWord { field, word, reader },
            What::Wrong(problem) if field.is_empty() => FieldError::new("spec", problem).into(),
            What::Wrong(problem) => FieldError::new(format!("spec.{field}"), problem).into(),
        }
    }
}

fn from_value<T: DeserializeOwned>(value: &Value) -> Result<T, Fault> {
    // `config.json` may hold more than the six fields; a recipe may not.
    let known = serde_json::to_value(RawModelConfig::default()).unwrap_or_default();
    let model = value.get("model").and_then(Value::as_object);
    if let Some(key) = model.and_then(|model| model.keys().find(|key| known.get(key).is_none())) {
        return Err(Fault { at: vec!["model".to_owned(), key.clone()], what: What::UnknownKey });
    }
    serde_path_to_error::deserialize(value)
        .map_err(|error| fault(value, keys(error.path()), &error.inner().to_string()))
}

fn keys(path: &Path) -> Vec<String> {
    let keys = path.iter().filter_map(|segment| match segment {
        Segment::Map { key } => Some(key.clone()),
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Enum { variant } => Some(variant.clone()),
        Segment::Unknown => None,
    });
    keys.collect()
}

/// Reads serde's message for what it says of versions; its own words are kept for all else.
fn fault(value: &Value, mut at: Vec<String>, message: &str) -> Fault {
    let quoted = |message: &str| message.split('`').nth(1).unwrap_or_default().to_owned();
    if message.starts_with("unknown field `") {
        let key = quoted(message);
        if at.last() != Some(&key) {
            at.push(key);
        }
        return Fault { at, what: What::UnknownKey };
    }
    if message.starts_with("unknown variant `") {
        let word = quoted(message);
        // A word with a value of its own is a key of its own.
        if at.last() == Some(&word) {
            at.pop();
        }
        return Fault { at, what: What::UnknownWord(word) };
    }
    if message.starts_with("missing field `") {
        let key = quoted(message);
        if at.last() != Some(&key) {
            at.push(key);
        }
        return Fault { at, what: What::Wrong("is missing".to_owned()) };
    }
    // A check of ours begins with the field that it was given: within a table it is one of its keys.
    let is_field = |text: &&str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
    let problem = match message.split_once(": ").filter(|(field, _)| is_field(field)) {
        Some((field, problem)) => {
            if found(value, &at).is_some_and(Value::is_object) {
                at.extend(field.split('.').map(str::to_owned));
            }
            problem
        }
        None => message,
    };
    Fault { at, what: What::Wrong(problem.to_owned()) }
}

fn found<'a>(value: &'a Value, at: &[String]) -> Option<&'a Value> {
    at.iter().try_fold(value, |value, key| match value {
        Value::Array(list) => list.get(key.parse::<usize>().ok()?),
        value => value.get(key),
    })
}

/// Takes away what is there, or of what is not there the part that misses it. False: nothing is left to take away.
fn remove(value: &mut Value, at: &[String]) -> bool {
    let Some((last, parents)) = at.split_last() else { return false };
    let mut parent = Some(&mut *value);
    for key in parents {
        parent = match parent {
            Some(Value::Array(list)) => key.parse::<usize>().ok().and_then(|index| list.get_mut(index)),
            Some(Value::Object(table)) => table.get_mut(key),
            _ => None,
        };
    }
    let was_there = match parent {
        Some(Value::Array(list)) => match last.parse::<usize>() {
            Ok(index) if index < list.len() => {
                list.remove(index);
                true
            }
            _ => false,
        },
        Some(Value::Object(table)) => table.remove(last).is_some(),
        _ => false,
    };
    was_there || remove(value, parents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        digest::Digest,
        id::{DatasetId, Name},
        recipe::{DeviceWishes, Precision, QueueWishes, Recipe},
    };

    fn spec() -> JobSpec {
        let recipe = Recipe::parse(Some("tiny"), "", &[]).unwrap();
        recipe.job(DatasetId(Digest::of(b"corpus")), &Name::from_lossy("first"))
    }

    /// The spec's JSON with another value at a dotted path.
    fn with(path: &str, new: Value) -> Vec<u8> {
        let mut value: Value = serde_json::from_slice(&spec().to_json()).unwrap();
        let (parents, key) =
            path.rsplit_once('.').map_or((None, path), |(parents, key)| (Some(parents), key));
        let mut parent = &mut value;
        for key in parents.into_iter().flat_map(|parents| parents.split('.')) {
            parent = &mut parent[key];
        }
        parent[key] = new;
        serde_json::to_vec(&value).unwrap()
    }

    fn error(path: &str, new: impl Into<Value>) -> String {
        JobSpec::read(&with(path, new.into()), Reader::Coordinator).unwrap_err().to_string()
    }

    #[test]
    fn what_this_version_does_not_know_is_refused_by_its_name() {
        let version = env!("CARGO_PKG_VERSION");
        for key in ["train.label_smoothing", "colour", "model.experts", "devices.racks", "queue.shift"] {
            let expected = format!(
                "this coordinator does not know `{key}`: it is of version {version}; upgrade it, or leave the key out"
            );
            assert_eq!(error(key, 0.1), expected);
        }
        let expected = format!(
            "this coordinator does not know `fp8` for `train.precision`: it is of version {version}; upgrade it, or \
             choose another value"
        );
        assert_eq!(error("train.precision", "fp8"), expected);
        for (path, value, expected) in [
            ("devices.kinds", serde_json::json!(["cpu", "tpu"]), "`tpu` for `devices.kinds.1`"),
            ("replicate.to", serde_json::json!({ "racks": ["a"] }), "`racks` for `replicate.to`"),
            (
                "start_from",
                serde_json::json!({ "checkpoint": "0".repeat(64), "how": "merge" }),
                "`merge` for `start_from.how`",
            ),
        ] {
            let said = error(path, value);
            assert!(said.starts_with(&format!("this coordinator does not know {expected}: ")), "{said}");
        }
    }

    #[test]
    fn wrong_values_name_the_field() {
        for (path, value, expected) in [
            ("train.lr", Value::from(11.0), "spec.train.lr: must be above 0 and at most 10, not 11"),
            ("train.lr", Value::Null, "spec.train.lr: invalid type: null"),
            ("dataset", "12".into(), "spec.dataset: must be 32 bytes, not 1"),
            (
                "devices.labels",
                serde_json::json!({ "room": "up stairs" }),
                "spec.devices.labels.room: \"up stairs\" may contain only letters",
            ),
            ("model.n_layer", 0.into(), "spec.model.n_layer: must be from 1 to 256, not 0"),
            (
                "queue",
                serde_json::json!({ "priority": 101 }),
                "spec.queue.priority: must be from 0 to 100, not 101",
            ),
            ("retain", serde_json::json!({ "last": 0 }), "spec.retain.last: "),
            ("model", Value::Null, "spec.model: "),
        ] {
            let said = error(path, value);
            assert!(said.starts_with(expected), "{said:?} does not start with {expected:?}");
        }
        let said = JobSpec::read(b"{}", Reader::Agent).unwrap_err().to_string();
        assert_eq!(said, "spec.name: is missing");
        let said = JobSpec::read(b"{", Reader::Agent).unwrap_err().to_string();
        assert!(said.starts_with("spec: is not JSON: "), "{said}");
        let long = vec![b' '; SPEC_BYTES_MAX + 1];
        let said = JobSpec::read(&long, Reader::Agent).unwrap_err().to_string();
        assert_eq!(said, "spec: has 262145 bytes, more than the limit of 262144");
    }

    #[test]
    fn absent_keys_have_their_defaults() {
        let spec = spec();
        let text = format!(
            r#"{{"name":"first","dataset":"{}","model":{{"n_embd":64}},"train":{{"steps":7}}}}"#,
            spec.dataset
        );
        let read = JobSpec::read(text.as_bytes(), Reader::Coordinator).unwrap();
        assert_eq!(
            (read.train.raw().steps, read.train.raw().log_every, read.train.raw().accumulate),
            (7, 10, 1)
        );
        assert_eq!((read.devices, read.queue), (DeviceWishes::default(), QueueWishes::default()));
        assert_eq!(read.model.raw().n_layer, RawModelConfig::default().n_layer);
    }

    #[test]
    fn a_spec_is_shown_also_where_parts_of_it_are_not_known() {
        let (read, left_out) = JobSpec::read_in_part(&spec().to_json(), Reader::CommandLine).unwrap();
        assert_eq!((read, left_out.len()), (spec(), 0));
        let (read, left_out) =
            JobSpec::read_in_part(&with("train.new", 1.into()), Reader::CommandLine).unwrap();
        assert_eq!(read, spec());
        assert!(
            left_out[0].to_string().starts_with("this hatchery does not know `train.new`: "),
            "{left_out:?}"
        );
        let (read, left_out) =
            JobSpec::read_in_part(&with("train.precision", "fp8".into()), Reader::CommandLine).unwrap();
        assert_eq!((read.train.raw().precision, left_out.len()), (Precision::Auto, 1));
        let start = serde_json::json!({ "checkpoint": "0".repeat(64), "how": "merge" });
        let (read, left_out) =
            JobSpec::read_in_part(&with("start_from", start), Reader::CommandLine).unwrap();
        assert_eq!((read.start_from, left_out.len()), (None, 2));
        let (_, left_out) = JobSpec::read_in_part(&with("train.lr", 11.into()), Reader::CommandLine).unwrap();
        assert_eq!(left_out.len(), 1);
        assert!(JobSpec::read_in_part(b"{}", Reader::CommandLine).is_err());
    }

    /// As rows, events and folders of the first version have it.
    #[test]
    fn the_first_version_s_json_is_read() {
        let text = format!(
            r#"{{"name":"first","dataset":"{}","model":{},"train":{},"devices":{{"kinds":["cpu"],"nodes":[],"labels":{{}}}},"replicate":{{"to":"all","which":"each"}}}}"#,
            "0".repeat(64),
            r#"{"n_layer":3,"n_embd":64,"dropout":0.1,"n_head":4,"mlp_internal_dim_multiplier":16,"vocab_size":256}"#,
            serde_json::to_string(&spec().train).unwrap(),
        );
        let read = JobSpec::read(text.as_bytes(), Reader::Coordinator).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text, "and written as it was");
    }
}
