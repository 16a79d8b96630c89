//! Settings out of environment variables.

use std::ffi::OsString;

use serde_json::Value as Json;

use crate::{field::nearest_key, settings::SettingsError};

/// What all of Hatchery's variables start with.
const PREFIX: &str = "HATCHERY_";
/// What stands between section, table and key.
const SEPARATOR: &str = "__";
/// The sections that there are.
const SECTIONS: [&str; 2] = ["coordinator", "agent"];
/// Variables with a meaning of their own.
const RESERVED: [&str; 6] = [
    "HATCHERY_HOME",
    "HATCHERY_TRAINER",
    "HATCHERY_LOG",
    "HATCHERY_LOG_FORMAT",
    "HATCHERY_FAULTS",
    "HATCHERY_COORDINATOR",
];

/// A setting as a variable gives it: the path of its key, and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) path: Vec<String>,
    pub(super) text: String,
}

/// The settings of `section` among `variables`. `defaults` says which keys exist.
pub(super) fn variables(
    section: &str,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    defaults: &Json,
) -> Result<Vec<Variable>, SettingsError> {
    let mut found = Vec::new();
    for (name, text) in variables {
        let Some(name) = name.into_string().ok().filter(|name| name.starts_with(PREFIX)) else { continue };
        if RESERVED.contains(&name.as_str()) {
            continue;
        }
        let wrong = |problem| Err(SettingsError::Variable { name: name.clone(), problem });
        let lower = name[PREFIX.len()..].to_ascii_lowercase();
        let Some((of_section, path)) = lower.split_once(SEPARATOR) else {
            if let Some(meant) = miswritten(section, &lower, defaults) {
                return wrong(format!("unknown; did you mean {meant}?"));
            }
            continue;
        };
        if !SECTIONS.contains(&of_section) {
            let near = nearest_key(of_section, SECTIONS).unwrap_or(section).to_ascii_uppercase();
            let path = path.to_ascii_uppercase();
            return wrong(format!("unknown section; did you mean {PREFIX}{near}{SEPARATOR}{path}?"));
        }
        if of_section != section {
            continue;
        }
        let path: Vec<String> = path.split(SEPARATOR).map(str::to_owned).collect();
        match text.into_string() {
            Ok(text) => found.push(Variable { name, path, text }),
            Err(_) => return wrong("its value is not UTF-8".to_owned()),
        }
    }
    // The order of the environment is nobody's intention.
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The variable that was meant by one with a single underscore where two belong, or without its section.
fn miswritten(section: &str, lower: &str, defaults: &Json) -> Option<String> {
    let given = lower.strip_prefix(section).and_then(|rest| rest.strip_prefix('_')).unwrap_or(lower);
    let paths = leaf_paths(defaults);
    let path = paths.iter().find(|path| path.join("_") == given)?;
    let path = path.join(SEPARATOR);
    Some(format!("{PREFIX}{section}{SEPARATOR}{path}").to_ascii_uppercase())
}

fn leaf_paths(value: &Json) -> Vec<Vec<&str>> {
    let Json::Object(fields) = value else { return vec![Vec::new()] };
    let mut paths = Vec::new();
    for (key, value) in fields {
        paths.extend(leaf_paths(value).into_iter().map(|rest| [vec![key.as_str()], rest].concat()));
    }
    paths
}

/// What `text` may mean, the likeliest first; the default value of its key tells the type that is wanted.
pub(super) fn readings(text: &str, default: Option<&Json>) -> Vec<toml::Value> {
    let as_text = toml::Value::String(text.to_owned());
    let as_toml = text.parse::<toml::Value>().ok();
    let as_list = || {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        toml::Value::Array(items.map(|item| toml::Value::String(item.to_owned())).collect())
    };
    match default {
        Some(Json::String(_)) => vec![as_text],
        Some(Json::Array(_)) => {
            let as_numbers = || format!("[{text}]").parse::<toml::Value>().ok();
            let written_out = as_toml.filter(toml::Value::is_array);
            written_out.into_iter().chain([as_list()]).chain(as_numbers()).collect()
        }
        // An optional setting shows no type: text as far as that will do.
        Some(Json::Null) | None => [as_text].into_iter().chain(as_toml).collect(),
        Some(_) => as_toml.into_iter().chain([as_text]).collect(),
    }
}
