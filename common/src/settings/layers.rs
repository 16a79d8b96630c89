//! Laying the layers over one another.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    path::PathBuf,
};

use config::{Map, Value, ValueKind};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value as Json;

use crate::{
    durable,
    field::{FieldError, check_keys},
    merge,
    settings::{
        FILE_BYTES_MAX, Resolved, SettingsError, Source,
        environment::{self, Variable},
        render::dotted,
    },
};

/// What settings are made of. Nothing is read before [`Layers::resolve`].
#[derive(Clone, Debug)]
pub struct Layers {
    section: &'static str,
    files: Vec<(PathBuf, bool)>,
    environment: Vec<(OsString, OsString)>,
    flags: Vec<(String, Vec<String>, toml::Value)>,
}

/// Values of one source.
#[derive(Clone, Debug)]
struct Layer {
    source: Source,
    table: toml::Table,
}

impl Layers {
    /// The defaults of `section`, `coordinator` or `agent`, alone.
    pub fn new(section: &'static str) -> Self {
        Self { section, files: Vec::new(), environment: Vec::new(), flags: Vec::new() }
    }

    /// Adds a file, which must be there.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push((path.into(), true));
        self
    }

    /// Adds a file if it is there.
    #[must_use]
    pub fn file_if_present(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push((path.into(), false));
        self
    }

    /// Adds variables; `std::env::vars_os()` in a program.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        self.environment.extend(variables);
        self
    }

    /// Adds a flag, as written on the command line, for the dotted `key`; nothing if it was not given.
    #[must_use]
    pub fn flag(mut self, flag: &str, key: &str, value: Option<impl Into<toml::Value>>) -> Self {
        if let Some(value) = value {
            let path = key.split('.').map(str::to_owned).collect();
            self.flags.push((flag.to_owned(), path, value.into()));
        }
        self
    }

    /// Reads files and variables, and makes the settings of them.
    pub fn resolve<T: Serialize + DeserializeOwned + Default>(self) -> Result<Resolved<T>, SettingsError> {
        let defaults =
            serde_json::to_value(T::default()).expect("settings are text, numbers, lists and tables");
        let mut readings: HashMap<String, usize> = HashMap::new();
        loop {
            let layers = self.layers(&defaults, &readings)?;
            let merged = lay(&defaults, &layers)?;
            let mut provenance = BTreeMap::new();
            trace(&merged, "", &layers, &mut provenance);
            // `config` itself reads numbers out of text and truth out of numbers; settings are read strictly, so as JSON.
            let merged = Json::deserialize(merged).expect("JSON holds whatever TOML does");
            let problem = match serde_path_to_error::deserialize(merged) {
                Ok(value) => return Ok(Resolved { value, provenance }),
                Err(error) => error,
            };
            let key = problem.path().to_string();
            let from = source_of(&key, &provenance);
            // The text of a variable may have been meant otherwise; each variable has few readings, so this ends.
            if let Source::Environment(name) = &from
                && self.has_reading(name, readings.get(name).map_or(1, |tried| tried + 1), &defaults)?
            {
                *readings.entry(name.clone()).or_default() += 1;
                continue;
            }
            let field = FieldError::new(key, problem.into_inner());
            return Err(SettingsError::Field { field, from });
        }
    }

    /// All layers but the defaults, the weakest first, their keys checked.
    fn layers(
        &self,
        defaults: &Json,
        readings: &HashMap<String, usize>,
    ) -> Result<Vec<Layer>, SettingsError> {
        let mut layers = Vec::new();
        for (path, required) in &self.files {
            let bytes = match durable::read_limited(path, FILE_BYTES_MAX) {
                Err(error) if error.is_missing() && !required => continue,
                other => other?,
            };
            let syntax = |problem: String| SettingsError::Syntax { path: path.clone(), problem };
            let text = std::str::from_utf8(&bytes).map_err(|error| syntax(error.to_string()))?;
            let table = toml::from_str(text).map_err(|error| syntax(error.to_string().trim().to_owned()))?;
            layers.push(Layer { source: Source::File(path.clone()), table });
        }
        for variable in self.variables(defaults)? {
            let readings_tried = readings.get(&variable.name).copied().unwrap_or(0);
            let mut meanings = environment::readings(&variable.text, default_of(defaults, &variable.path));
            let value = meanings.swap_remove(readings_tried.min(meanings.len() - 1));
            let source = Source::Environment(variable.name);
            layers.push(Layer { source, table: nested(&variable.path, value) });
        }
        for (flag, path, value) in &self.flags {
            layers.push(Layer { source: Source::Flag(flag.clone()), table: nested(path, value.clone()) });
        }
        let known = known_keys(defaults);
        for Layer { source, table } in &layers {
            check_keys(table, &known)
                .map_err(|field| SettingsError::Field { field, from: source.clone() })?;
        }
        Ok(layers)
    }

    fn variables(&self, defaults: &Json) -> Result<Vec<Variable>, SettingsError> {
        environment::variables(self.section, self.environment.iter().cloned(), defaults)
    }

    fn has_reading(&self, name: &str, number: usize, defaults: &Json) -> Result<bool, SettingsError> {
        let variables = self.variables(defaults)?;
        let variable = variables.iter().find(|variable| variable.name == name);
        Ok(variable.is_some_and(|variable| {
            environment::readings(&variable.text, default_of(defaults, &variable.path)).len() > number
        }))
    }
}

/// Lays `layers` over `defaults`. Each value's origin is the number of its layer; the defaults have none.
fn lay(defaults: &Json, layers: &[Layer]) -> Result<Value, SettingsError> {
    let wrong = |from: &Source, error| SettingsError::Field {
        field: FieldError::new("settings", error),
        from: from.clone(),
    };
    let known = Map::deserialize(defaults).map_err(|error| wrong(&Source::Default, error.to_string()))?;
    let mut all = vec![merge::Layer::defaults(known)];
    for (number, Layer { source, table }) in layers.iter().enumerate() {
        let layer = merge::Layer::new(&number.to_string(), table);
        all.push(layer.map_err(|error| wrong(source, error.to_string()))?);
    }
    merge::merge(all).map_err(|error| wrong(&Source::Default, error.to_string()))
}

/// Notes the layer of each leaf of `value`.
fn trace(value: &Value, path: &str, layers: &[Layer], provenance: &mut BTreeMap<String, Source>) {
    if let ValueKind::Table(table) = &value.kind {
        for (key, value) in table {
            trace(value, &dotted(path, key), layers, provenance);
        }
        return;
    }
    let layer = value.origin().and_then(|number| layers.get(number.parse::<usize>().ok()?));
    provenance.insert(path.to_owned(), layer.map_or(Source::Default, |layer| layer.source.clone()));
}

/// The source of `key`, or of the nearest key that it lies in or that lies in it.
fn source_of(key: &str, provenance: &BTreeMap<String, Source>) -> Source {
    let lies_in = |inner: &str, outer: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    provenance
        .iter()
        .find(|(known, source)| **source != Source::Default && (lies_in(key, known) || lies_in(known, key)))
        .map_or(Source::Default, |(_, source)| source.clone())
}

fn default_of<'a>(defaults: &'a Json, path: &[String]) -> Option<&'a Json> {
    path.iter().try_fold(defaults, |value, key| value.get(key))
}

fn nested(path: &[String], value: toml::Value) -> toml::Table {
    let wrap = |inner, key: &String| toml::Value::Table(toml::Table::from_iter([(key.clone(), inner)]));
    match path.iter().rev().fold(value, wrap) {
        toml::Value::Table(table) => table,
        _ => toml::Table::new(),
    }
}

/// The keys that exist, in the form that [`check_keys`] takes.
fn known_keys(defaults: &Json) -> toml::Table {
    let Json::Object(fields) = defaults else { return toml::Table::new() };
    let known = |value: &Json| match value {
        Json::Object(_) => toml::Value::Table(known_keys(value)),
        _ => toml::Value::Boolean(true),
    };
    fields.iter().map(|(key, value)| (key.clone(), known(value))).collect()
}
