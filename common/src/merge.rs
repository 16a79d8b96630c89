//! Tables laid over one another, the later stronger key by key. The `config` crate lays them, and keeps the origin of each value.

use config::{Config, ConfigError, FileFormat, Format, Map, Value};

/// What one source says.
#[derive(Clone, Debug)]
pub(crate) struct Layer(Map<String, Value>);

impl Layer {
    /// What holds where no other layer says anything: a table, whose values have no origin.
    pub(crate) fn defaults(table: Map<String, Value>) -> Self {
        Self(table)
    }

    /// A table, whose values have this origin.
    pub(crate) fn new(origin: &str, table: &toml::Table) -> Result<Self, ConfigError> {
        let origin = origin.to_owned();
        FileFormat::Toml.parse(Some(&origin), &table.to_string()).map(Self).map_err(ConfigError::Foreign)
    }
}

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

/// Lays `layers` over one another, the weakest first.
pub(crate) fn merge(layers: impl IntoIterator<Item = Layer>) -> Result<Value, ConfigError> {
    let mut builder = Config::builder();
    for layer in layers {
        builder = builder.add_source(layer);
    }
    Ok(builder.build()?.cache)
}
