//! Settings written out for people and for scripts.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use crate::settings::{Resolved, Source};

impl<T: Serialize> Resolved<T> {
    /// The settings as a TOML file that gives the same settings again; each line ends in where its value came from.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        if let Json::Object(fields) = self.json() {
            self.write_table(&mut text, "", &fields);
        }
        text
    }

    /// The settings as a JSON object: for each dotted key its `value` and its `source`.
    pub fn to_json(&self) -> Json {
        let mut flat = Map::new();
        self.flatten("", self.json(), &mut flat);
        Json::Object(flat)
    }

    fn json(&self) -> Json {
        serde_json::to_value(&self.value).expect("settings are text, numbers, lists and tables")
    }

    fn source(&self, path: &str) -> &Source {
        self.provenance.get(path).unwrap_or(&Source::Default)
    }

    fn write_table(&self, text: &mut String, path: &str, fields: &Map<String, Json>) {
        let is_table = |value: &Json| value.is_object();
        for (key, value) in fields.iter().filter(|(_, value)| !is_table(value)) {
            let (bare, source) = (dotted("", key), self.source(&dotted(path, key)));
            let line = match toml::Value::try_from(value) {
                Ok(value) => format!("{bare} = {value}  # from {source}\n"),
                Err(_) => format!("# {bare} is not set  # from {source}\n"),
            };
            text.push_str(&line);
        }
        for (key, value) in fields {
            if let Json::Object(fields) = value {
                let path = dotted(path, key);
                let gap = if text.is_empty() { "" } else { "\n" };
                writeln!(text, "{gap}[{path}]").expect("text takes any length");
                self.write_table(text, &path, fields);
            }
        }
    }

    fn flatten(&self, path: &str, value: Json, flat: &mut Map<String, Json>) {
        match value {
            Json::Object(fields) => {
                for (key, value) in fields {
                    self.flatten(&dotted(path, &key), value, flat);
                }
            }
            value => {
                let source = self.source(path).to_string();
                flat.insert(path.to_owned(), json!({ "value": value, "source": source }));
            }
        }
    }
}

/// The key `key` within the table `path`, quoted where TOML wants that.
pub(super) fn dotted(path: &str, key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let key = if !key.is_empty() && key.chars().all(is_bare) {
        key.to_owned()
    } else {
        toml::Value::String(key.to_owned()).to_string()
    };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
