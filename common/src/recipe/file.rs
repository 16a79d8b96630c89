//! A recipe as a person gives it: preset, TOML text and single keys, merged and checked.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{DeviceWishes, QueueWishes, RawTrainSpec, ReplicaPolicy, RetainPolicy, TrainSpec};
use crate::{
    field::{FieldError, check_keys, from_table, nearest_key},
    id::{CheckpointId, DatasetId, Name},
    merge::{Layer, merge},
    model::{ModelConfig, RawModelConfig},
};

/// What is wrong with a recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The text is not TOML.
    #[error("the recipe is not valid TOML: {0}")]
    Syntax(String),
    /// A key is unknown, or a value is wrong.
    #[error("invalid recipe: {0}")]
    Field(#[from] FieldError),
}

/// A ready-made recipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preset {
    /// 229 thousand parameters; learns to spell within a minute on two CPU cores.
    Tiny,
    /// The reference run: 3.21 million parameters, 5000 steps.
    Seed,
}

impl Preset {
    /// Every preset with its name.
    pub const ALL: [(&'static str, Self); 2] = [("tiny", Self::Tiny), ("seed", Self::Seed)];

    /// Finds a preset by name; the error suggests the near one.
    pub fn parse(name: &str) -> Result<Self, FieldError> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, preset)| *preset).ok_or_else(|| {
            let names = Self::ALL.map(|(known, _)| known);
            let hint = nearest_key(name, names).map_or_else(
                || format!("known: {}", names.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            FieldError::new("preset", format!("there is no preset `{name}`; {hint}"))
        })
    }

    fn model(self) -> RawModelConfig {
        match self {
            Self::Tiny => RawModelConfig {
                n_layer: 3,
                n_embd: 64,
                mlp_internal_dim_multiplier: 16,
                ..Default::default()
            },
            Self::Seed => RawModelConfig {
                n_layer: 4,
                n_embd: 128,
                mlp_internal_dim_multiplier: 64,
                ..Default::default()
            },
        }
    }

    fn train(self) -> RawTrainSpec {
        match self {
            Self::Tiny => RawTrainSpec::default(),
            Self::Seed => RawTrainSpec {
                steps: 5000,
                block: 256,
                checkpoint_every: 1000,
                // Twice for each checkpoint, on so much text that it costs a CPU less than a hundredth of the steps.
                validate_every: 500,
                validation_windows: 100,
                ..Default::default()
            },
        }
    }
}

/// The files of the corpus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSpec {
    /// Files and folders of text; folders are read recursively.
    pub paths: Vec<PathBuf>,
    /// Globs for the files of a folder, matched against the path within the folder; empty: all files.
    pub include: Vec<String>,
}

/// A checked recipe; [`Recipe::job`] makes it a job once its dataset is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The job's name, if the recipe gives one.
    pub name: Option<Name>,
    /// A sentence about the job.
    pub note: Option<Note>,
    /// The corpus.
    pub data: DataSpec,
    /// The model's shape.
    pub model: ModelConfig,
    /// Steps, batch, optimizer and so on.
    pub train: TrainSpec,
    /// Where it may run.
    pub devices: DeviceWishes,
    /// Where its checkpoints go.
    pub replicate: ReplicaPolicy,
    /// How it stands in the queue.
    pub queue: QueueWishes,
    /// Which of its checkpoints are kept.
    pub retain: RetainPolicy,
}

/// A job as it is submitted: everything that `decide` and the trainer need to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The job's name; need not be unique.
    pub name: Name,
    /// A sentence about the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Note>,
    /// The dataset.
    pub dataset: DatasetId,
    /// The model's shape.
    pub model: ModelConfig,
    /// Steps, batch, optimizer and so on.
    pub train: TrainSpec,
    /// Where it may run.
    #[serde(default)]
    pub devices: DeviceWishes,
    /// Where its checkpoints go.
    #[serde(default)]
    pub replicate: ReplicaPolicy,
    /// A checkpoint to begin with; none: random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_from: Option<StartFrom>,
    /// Its place in the queue.
    #[serde(default, skip_serializing_if = "QueueWishes::is_default")]
    pub queue: QueueWishes,
    /// The checkpoints that are kept.
    #[serde(default, skip_serializing_if = "RetainPolicy::is_default")]
    pub retain: RetainPolicy,
}

impl JobSpec {
    /// A job that wishes for nothing beyond these.
    pub fn new(name: Name, dataset: DatasetId, model: ModelConfig, train: TrainSpec) -> Self {
        Self {
            name,
            note: None,
            dataset,
            model,
            train,
            devices: DeviceWishes::default(),
            replicate: ReplicaPolicy::default(),
            start_from: None,
            queue: QueueWishes::default(),
            retain: RetainPolicy::default(),
        }
    }

    /// Whether `checkpoint` is what the job begins with at step 0, by its weights alone.
    pub fn fine_tunes(&self, checkpoint: CheckpointId) -> bool {
        self.start_from == Some(StartFrom { checkpoint, how: StartHow::FineTune })
    }
}

/// A sentence about a job, by the person who submits it. One line, at most [`Note::CHARACTERS_MAX`] characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Note(String);

impl Note {
    /// Most characters.
    pub const CHARACTERS_MAX: usize = 500;

    /// The sentence.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Note {
    type Error = FieldError;

    fn try_from(text: String) -> Result<Self, FieldError> {
        let characters = text.chars().count();
        if characters > Self::CHARACTERS_MAX {
            let problem = format!("must have at most {} characters, not {characters}", Self::CHARACTERS_MAX);
            return Err(FieldError::new("note", problem));
        }
        if text.contains(char::is_control) {
            return Err(FieldError::new("note", "must be one line without control characters"));
        }
        Ok(Self(text))
    }
}

impl From<Note> for String {
    fn from(note: Note) -> Self {
        note.0
    }
}

/// A checkpoint of another job that a job begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartFrom {
    /// Its id.
    pub checkpoint: CheckpointId,
    /// All of it, or its weights alone.
    pub how: StartHow,
}

/// With how much of a checkpoint a job begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartHow {
    /// With all of it: the run goes on from its step, as if it had never ended.
    Continue,
    /// With its weights: step 0, a fresh optimizer, a text and a recipe of its own.
    FineTune,
}

/// The whole of a recipe as TOML, before it is checked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RecipeText {
    /// The ready-made recipe that the other keys change: `tiny` (229 thousand parameters, a minute on two CPU cores) or `seed`
    /// (3.21 million parameters, 5000 steps).
    preset: Option<String>,
    /// The job's name; need not be unique. Not set: taken from the recipe's file, the data or the preset.
    name: Option<Name>,
    /// A sentence about the job, shown with it: one line of at most 500 characters.
    note: Option<Note>,
    /// The text to train on. `data = ["notes/"]` is short for `data.paths`.
    data: DataSpec,
    /// The model's shape, as in `config.json`.
    model: RawModelConfig,
    /// Steps, batch, optimizer, validation and checkpoints.
    train: RawTrainSpec,
    /// Where the job may run. Empty lists and tables allow every device.
    devices: DeviceWishes,
    /// Which nodes get the job's checkpoints without being asked, and in what form.
    replicate: ReplicaPolicy,
    /// The job's place in the queue.
    queue: QueueWishes,
    /// Which checkpoints are kept. The newest, the best and the pinned ones always are, and so is any that a rollout in force,
    /// another job or an attempt needs.
    retain: RetainPolicy,
}

impl Recipe {
    /// Longest recipe text, in bytes.
    pub const TEXT_BYTES_MAX: usize = 1 << 20;

    /// Merges, from weakest to strongest: the preset (`preset`, else the text's own, else `tiny`), the TOML
    /// `text`, and `settings` such as `train.steps=500`, whose values are TOML (a bare word is a string).
    pub fn parse(preset: Option<&str>, text: &str, settings: &[String]) -> Result<Self, RecipeError> {
        if text.len() > Self::TEXT_BYTES_MAX {
            return Err(RecipeError::Syntax(format!(
                "it has {} bytes; the limit is {}",
                text.len(),
                Self::TEXT_BYTES_MAX
            )));
        }
        let mut given: toml::Table =
            toml::from_str(text).map_err(|error| RecipeError::Syntax(error.to_string()))?;
        // `data = ["notes/"]` is short for `data.paths`.
        if let Some(paths @ (toml::Value::Array(_) | toml::Value::String(_))) = given.get("data").cloned() {
            let paths = if paths.is_str() { toml::Value::Array(vec![paths]) } else { paths };
            given.insert("data".to_owned(), toml::Table::from_iter([("paths".to_owned(), paths)]).into());
        }
        for setting in settings {
            apply_setting(&mut given, setting)?;
        }
        check_keys(&given, &known_keys())?;
        let preset = match (preset, given.get("preset")) {
            (Some(name), _) => Preset::parse(name)?,
            (None, Some(toml::Value::String(name))) => Preset::parse(name)?,
            (None, None) => Preset::Tiny,
            (None, Some(_)) => return Err(FieldError::new("preset", "must be a string").into()),
        };
        let defaults =
            table_of(&RecipeText { model: preset.model(), train: preset.train(), ..RecipeText::default() });
        let text: RecipeText = from_table(merged(&defaults, &given)?)?;
        Ok(Self {
            name: text.name,
            note: text.note,
            data: text.data,
            model: ModelConfig::new(text.model).map_err(|error| error.within("model"))?,
            train: TrainSpec::new(text.train).map_err(|error| error.within("train"))?,
            devices: text.devices,
            replicate: text.replicate,
            queue: text.queue,
            retain: text.retain,
        })
    }

    /// The job that trains by this recipe on `dataset`; `name` serves where the recipe has none.
    pub fn job(&self, dataset: DatasetId, name: &Name) -> JobSpec {
        let name = self.name.as_ref().unwrap_or(name).clone();
        JobSpec {
            note: self.note.clone(),
            devices: self.devices.clone(),
            replicate: self.replicate.clone(),
            queue: self.queue.clone(),
            retain: self.retain,
            ..JobSpec::new(name, dataset, self.model.clone(), self.train.clone())
        }
    }

    /// The text of a recipe that asks for what `spec` asks for; name, note, data, beginning and place in the queue are left out.
    pub fn text_of(spec: &JobSpec) -> String {
        let part = |key: &str, table| (key.to_owned(), toml::Value::Table(table));
        let parts = [
            part("model", toml_of(&spec.model)),
            part("train", toml_of(&spec.train)),
            part("devices", toml_of(&spec.devices)),
            part("replicate", toml_of(&spec.replicate)),
            part("retain", toml_of(&spec.retain)),
        ];
        toml::Table::from_iter(parts).to_string()
    }

    /// A recipe's `text` in which `[model]`, and `[train]` if it is given, are these where the text says nothing.
    pub fn text_like(
        text: &str,
        model: &ModelConfig,
        train: Option<&TrainSpec>,
    ) -> Result<String, RecipeError> {
        let syntax = |error: toml::de::Error| RecipeError::Syntax(error.to_string());
        let mut text: toml::Table = toml::from_str(text).map_err(syntax)?;
        let mut like = |key: &str, defaults: toml::Table| {
            let part = text.entry(key).or_insert_with(|| toml::Table::new().into());
            // What is no table is told by the recipe's own check.
            for (key, value) in part.is_table().then_some(defaults).into_iter().flatten() {
                part.as_table_mut().map(|part| part.entry(key).or_insert(value));
            }
        };
        like("model", toml_of(model));
        if let Some(train) = train {
            like("train", toml_of(train));
        }
        Ok(text.to_string())
    }
}

fn toml_of(part: &impl Serialize) -> toml::Table {
    toml::Table::try_from(part).expect("a part of a recipe is made of numbers and words, which TOML can hold")
}

fn table_of(text: &RecipeText) -> toml::Table {
    toml::Table::try_from(text).expect("a recipe is made of tables, numbers and text, which TOML can hold")
}

/// Every key that a recipe may have; empty tables accept any key.
fn known_keys() -> toml::Table {
    let mut known = table_of(&RecipeText::default());
    let word = || toml::Value::from(String::new());
    for key in ["preset", "name", "note"] {
        known.insert(key.to_owned(), word());
    }
    // What is left out where nothing is wished.
    for (part, keys) in [
        ("devices", &["exclude", "memory_bytes_min"][..]),
        ("queue", &["group", "after", "deadline"]),
        ("replicate", &["weights"]),
        ("retain", &["last"]),
    ] {
        let part = known.get_mut(part).and_then(toml::Value::as_table_mut).into_iter();
        part.for_each(|part| part.extend(keys.iter().map(|key| ((*key).to_owned(), word()))));
    }
    // `replicate.to` is a word or a table with one word as its key; serde says what is wrong with it.
    if let Some(replicate) = known.get_mut("replicate").and_then(toml::Value::as_table_mut) {
        replicate.insert("to".to_owned(), toml::Table::new().into());
    }
    known
}

fn apply_setting(table: &mut toml::Table, setting: &str) -> Result<(), RecipeError> {
    let (path, value) = setting
        .split_once('=')
        .ok_or_else(|| FieldError::new(setting, "must be key=value, such as train.steps=500"))?;
    let (path, value) = (path.trim(), value.trim());
    let value = toml::from_str::<toml::Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| value.into());
    let mut table = table;
    let (parents, key) = path.rsplit_once('.').map_or((None, path), |(parents, key)| (Some(parents), key));
    for parent in parents.into_iter().flat_map(|parents| parents.split('.')) {
        table = table
            .entry(parent)
            .or_insert_with(|| toml::Table::new().into())
            .as_table_mut()
            .ok_or_else(|| FieldError::new(path, format!("`{parent}` is a value, not a table")))?;
    }
    table.insert(key.to_owned(), value);
    Ok(())
}

/// Lays what is given over the defaults.
fn merged(defaults: &toml::Table, given: &toml::Table) -> Result<toml::Table, RecipeError> {
    let layers = [Layer::new("defaults", defaults), Layer::new("recipe", given)];
    let merged = layers.into_iter().collect::<Result<Vec<_>, _>>().and_then(merge);
    let merged = merged.and_then(toml::Table::deserialize);
    merged.map_err(|error| RecipeError::Syntax(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::{
        device::DeviceKind,
        recipe::{NodeSelector, ReplicaWeights, ReplicateWhich},
    };

    fn error(text: &str, settings: &[&str]) -> String {
        let settings: Vec<String> = settings.iter().map(|s| (*s).to_owned()).collect();
        Recipe::parse(None, text, &settings).unwrap_err().to_string()
    }

    #[test]
    fn preset_text_and_settings_are_merged_in_that_order() {
        let text = "preset = 'seed'\ndata = ['notes']\n[train]\nsteps = 10\nlr = 5e-4\n[devices]\nkinds = ['cuda']\n\
                    [replicate]\nto = { labels = { room = 'attic' } }\nwhich = 'last'\nweights = 'bf16'";
        let recipe = Recipe::parse(None, text, &["train.steps=20".into(), "name=mine".into()]).unwrap();
        assert_eq!(recipe.model.parameters(), 3_211_264);
        assert_eq!(recipe.train.raw().steps, 20);
        assert_eq!(recipe.train.raw().block, 256);
        assert!((recipe.train.raw().lr - 5e-4).abs() < 1e-12);
        assert_eq!(recipe.devices.kinds, [DeviceKind::Cuda]);
        assert_eq!(recipe.data.paths, [PathBuf::from("notes")]);
        assert_eq!(recipe.name.unwrap().as_str(), "mine");
        assert!(matches!(recipe.replicate.to, NodeSelector::Labels(_)));
        assert_eq!(recipe.replicate.which, ReplicateWhich::Last);
        assert_eq!(recipe.replicate.weights, ReplicaWeights::Bf16);
        assert_eq!(Recipe::parse(Some("tiny"), text, &[]).unwrap().train.raw().block, 128);
    }

    #[test]
    fn wrong_recipes_say_where_and_what() {
        assert_eq!(
            error("[train]\nstpes = 5", &[]),
            "invalid recipe: train.stpes: unknown key; did you mean `steps`?"
        );
        for (setting, expected) in [
            ("train.steps=many", "train.steps"),
            ("train.lr=nan", "train.lr: must be above 0"),
            ("model.n_embd=130", "model.n_embd: 130 is not divisible by n_head = 4"),
            ("model.n_layer=-1", "model.n_layer"),
            ("train.batch=0", "train.batch: must be from 1 to"),
            ("preset=sed", "did you mean `seed`?"),
            ("devices.kinds=[\"gpu\"]", "devices.kinds"),
            ("replicate.to=everyone", "replicate.to"),
            ("replicate.weights=f16", "replicate.weights"),
            ("replicate.weight=bf16", "did you mean `weights`?"),
            ("retain.last=0", "retain.last"),
            ("retain.lst=1", "did you mean `last`?"),
            ("train", "must be key=value"),
        ] {
            let message = error("", &[setting]);
            assert!(message.contains(expected), "{setting}: {message}");
        }
        assert!(error("[train", &[]).contains("not valid TOML"));
    }

    #[test]
    fn a_text_like_a_run_says_only_what_it_says() {
        let seed = Recipe::parse(Some("seed"), "", &[]).unwrap();
        let text = "[model]\ndropout = 0.3\n[train]\nsteps = 7";
        let whole = Recipe::text_like(text, &seed.model, Some(&seed.train)).unwrap();
        let recipe = Recipe::parse(Some("tiny"), &whole, &["train.lr=0.5".into()]).unwrap();
        assert_eq!((recipe.model.width(), recipe.model.raw().dropout), (128, 0.3));
        assert_eq!((recipe.train.raw().steps, recipe.train.raw().block), (7, 256));
        let model_only = Recipe::text_like(text, &seed.model, None).unwrap();
        let recipe = Recipe::parse(Some("tiny"), &model_only, &[]).unwrap();
        assert_eq!((recipe.model.width(), recipe.train.raw().block), (128, 128));
        let wrong = Recipe::text_like("model = 3", &seed.model, None).unwrap();
        assert!(Recipe::parse(None, &wrong, &[]).is_err());
        assert!(Recipe::text_like("[model", &seed.model, None).is_err());
    }

    #[test]
    fn a_job_survives_json() {
        let recipe = Recipe::parse(Some("seed"), "", &[]).unwrap();
        let dataset = DatasetId(crate::digest::Digest::of(b"corpus"));
        let job = recipe.job(dataset, &Name::from_lossy("x"));
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(serde_json::from_str::<JobSpec>(&text).unwrap(), job);
        let labels = [(Name::from_lossy("room"), Name::from_lossy("attic"))].into();
        for to in [NodeSelector::All, NodeSelector::None, NodeSelector::Labels(labels)] {
            let replicate = ReplicaPolicy { to, which: ReplicateWhich::Best, weights: ReplicaWeights::Bf16 };
            let retain = RetainPolicy { last: NonZeroU32::new(3), every: 100 };
            let job = JobSpec { replicate, retain, ..job.clone() };
            let again = Recipe::parse(Some("tiny"), &Recipe::text_of(&job), &[]).unwrap();
            assert_eq!(again.job(dataset, &job.name), job);
        }
    }
}
