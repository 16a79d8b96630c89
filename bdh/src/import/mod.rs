//! Checkpoints of the public code, made into checkpoint folders.
//!
//! Two kinds of files are read: what `torch.save` of torch 1.6 or later wrote, either `{model, config, step}` or a state
//! dict alone, and a state dict as safetensors, by itself or with a `config.json` beside it. A `.pt` file is a pickle,
//! which in Python may run anything; here a reader of our own takes it apart and runs nothing.

mod error;
mod pickle;
mod source;
mod torch_file;
mod write;
mod zip;

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{Read, Seek},
    path::Path,
};

pub use error::ImportError;
use hatchery_common::{
    checkpoint::CONFIG_FILE,
    field::{FieldError, check_range},
    model::{ModelConfig, RawModelConfig},
    recipe::TrainSpec,
};
use source::{GivenConfig, Source, View};

use crate::load::{WeightFile, is_passed_over, load_config, open_regular};

/// What every zip archive begins with.
const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";
/// What every pickle of protocol 2 begins with.
const PICKLE_MAGIC: [u8; 2] = [0x80, 2];
/// What wrappers put before the names of a state dict: `torch.compile`, data parallelism.
const WRAPPERS: [&str; 2] = ["_orig_mod.", "module."];

/// What a file may leave open.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ImportOptions {
    /// Layers: all share one set of weights, so that the weights do not tell how many there are.
    pub n_layer: Option<u32>,
    /// Share of gated activations dropped in training; without it, and if the file does not say, the published 0.1.
    pub dropout: Option<f64>,
    /// The block in bytes that the model was trained on; public files do not say. Without it, an answer looks back
    /// without limit, and beyond the trained block it gets worse.
    pub block: Option<u32>,
}

/// A checkpoint in memory, checked: its five weights fit its configuration, and all numbers are finite.
pub struct Imported {
    config: ModelConfig,
    trained_block: Option<u32>,
    /// In the order of [`ModelConfig::weights`].
    weights: [Vec<f32>; 5],
}

impl Imported {
    /// Reads `file`, whatever is in it. Memory beyond the five weights as f32 is bounded by twice the file's size and a
    /// few ten MiB; a file in order needs far less.
    pub fn read(file: &Path, options: &ImportOptions) -> Result<Self, ImportError> {
        let mut source = open(file)?;
        let config = config(file, &source, options)?;
        let trained_block = options.block.or(source.trained_block);
        if let Some(block) = trained_block {
            check_range("block", block, 2, TrainSpec::BLOCK_MAX)
                .map_err(|problem| ImportError::Config { file: file.to_owned(), problem })?;
        }
        check_names(file, &source.tensors, &config)?;
        let mut weights = <[Vec<f32>; 5]>::default();
        for ((name, shape), numbers) in config.weights().into_iter().zip(&mut weights) {
            *numbers = read_weight(file, &mut source, name, &shape)?;
        }
        Ok(Self { config, trained_block, weights })
    }

    /// Writes a checkpoint folder with the two public files. `folder` must be new, or empty.
    pub fn write(&self, folder: &Path) -> Result<(), ImportError> {
        write::write(self, folder)
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The block in bytes that it was trained on, if that is known.
    pub fn trained_block(&self) -> Option<u32> {
        self.trained_block
    }

    fn weights(&self) -> &[Vec<f32>; 5] {
        &self.weights
    }
}

impl fmt::Debug for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imported").field("config", &self.config).finish_non_exhaustive()
    }
}

fn open(path: &Path) -> Result<Source, ImportError> {
    let unreadable = |source| ImportError::Unreadable { file: path.to_owned(), source };
    let (mut file, _) = open_regular(path).map_err(unreadable)?;
    let mut start = Vec::new();
    Read::by_ref(&mut file).take(ZIP_MAGIC.len() as u64).read_to_end(&mut start).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    if start == ZIP_MAGIC {
        torch_file::open(path, file)
    } else if start.starts_with(&PICKLE_MAGIC) {
        Err(ImportError::OldForm { file: path.to_owned() })
    } else {
        open_safetensors(path)
    }
}

fn open_safetensors(path: &Path) -> Result<Source, ImportError> {
    let found = WeightFile::open(path.to_owned())?;
    let mut tensors = BTreeMap::new();
    for name in found.header.offset_keys() {
        let info = found.header.info(&name).expect("it is a key of this header");
        let start = found.data_start + info.data_offsets.0 as u64;
        insert_tensor(path, &mut tensors, &name, |_| {
            Ok(View::contiguous(info.dtype, info.shape.clone(), start))
        })?;
    }
    let beside = path.with_file_name(CONFIG_FILE);
    let config =
        if beside.is_file() { GivenConfig::from(load_config(&beside)?) } else { GivenConfig::default() };
    let trained_block = found.trained_block()?;
    Ok(Source { file: found.file, tensors, config, trained_block })
}

/// Puts a tensor under its public name, without the names of wrappers; what a reader need not know is left out.
fn insert_tensor(
    path: &Path,
    tensors: &mut BTreeMap<String, View>,
    name: &str,
    view: impl FnOnce(&str) -> Result<View, ImportError>,
) -> Result<(), ImportError> {
    let mut public = name;
    while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| public.strip_prefix(wrapper)) {
        public = inner;
    }
    if is_passed_over(public) {
        return Ok(());
    }
    if tensors.insert(public.to_owned(), view(public)?).is_some() {
        let problem = "appears twice, with and without a wrapper's prefix".to_owned();
        return Err(ImportError::Tensor { file: path.to_owned(), tensor: public.to_owned(), problem });
    }
    Ok(())
}

impl From<ModelConfig> for GivenConfig {
    fn from(config: ModelConfig) -> Self {
        let raw = RawModelConfig::from(config);
        Self {
            n_layer: Some(raw.n_layer),
            n_embd: Some(raw.n_embd),
            dropout: Some(raw.dropout),
            n_head: Some(raw.n_head),
            mlp_internal_dim_multiplier: Some(raw.mlp_internal_dim_multiplier),
            vocab_size: Some(raw.vocab_size),
        }
    }
}

/// The configuration: what the file says, then what the options say, then what the shapes say. Whether the weights have
/// the shapes that it asks for is checked with each weight.
fn config(path: &Path, source: &Source, options: &ImportOptions) -> Result<ModelConfig, ImportError> {
    let wrong = |problem| ImportError::Config { file: path.to_owned(), problem };
    let given = &source.config;
    let n_layer = agreed("n_layer", given.n_layer, options.n_layer).map_err(wrong)?.ok_or_else(|| {
        wrong(FieldError::new(
            "n_layer",
            "is not in the file and cannot be told from the weights; set it with --n-layer (published \
             default: 6)",
        ))
    })?;
    let dropout = agreed("dropout", given.dropout, options.dropout).map_err(wrong)?;
    let shape_of = |name: &str, dimensions: usize| {
        let shape = source.tensors.get(name).map(|view| view.shape.as_slice());
        let known = shape.filter(|shape| shape.len() == dimensions);
        known.ok_or_else(|| ImportError::Tensor {
            file: path.to_owned(),
            tensor: name.to_owned(),
            problem: match shape {
                None => missing(&source.tensors),
                Some(shape) => format!("has shape {shape:?}, but {dimensions} dimensions are needed"),
            },
        })
    };
    // H x D x M and V x D.
    let (encoder, embed) = (shape_of("encoder", 3)?, shape_of("embed.weight", 2)?);
    let (n_head, n_embd, neurons) = (encoder[0], encoder[1], encoder[2]);
    let multiplier = n_head.saturating_mul(neurons) / n_embd.max(1);
    let figure = |given: Option<u32>, found: usize| given.unwrap_or(u32::try_from(found).unwrap_or(u32::MAX));
    ModelConfig::new(RawModelConfig {
        n_layer,
        n_embd: figure(given.n_embd, n_embd),
        dropout: dropout.unwrap_or(RawModelConfig::default().dropout),
        n_head: figure(given.n_head, n_head),
        mlp_internal_dim_multiplier: figure(given.mlp_internal_dim_multiplier, multiplier),
        vocab_size: figure(given.vocab_size, embed[0]),
    })
    .map_err(wrong)
}

/// What the file and the option say, if they do not contradict each other.
fn agreed<T: PartialEq + Copy + fmt::Display>(
    field: &str,
    given: Option<T>,
    option: Option<T>,
) -> Result<Option<T>, FieldError> {
    match (given, option) {
        (Some(given), Some(option)) if given != option => {
            Err(FieldError::new(field, format!("is {given} in the file, but {option} on the command line")))
        }
        (given, option) => Ok(given.or(option)),
    }
}

fn missing(tensors: &BTreeMap<String, View>) -> String {
    const NAMES_SHOWN_MAX: usize = 8;
    let names: Vec<_> = tensors.keys().take(NAMES_SHOWN_MAX).map(String::as_str).collect();
    format!("is missing; the file has: {}", names.join(", "))
}

/// Checks that nothing would be left out that a model might need.
fn check_names(
    path: &Path,
    tensors: &BTreeMap<String, View>,
    config: &ModelConfig,
) -> Result<(), ImportError> {
    let weights = config.weights();
    match tensors.keys().find(|name| weights.iter().all(|(known, _)| known != name)) {
        None => Ok(()),
        Some(name) => Err(ImportError::Tensor {
            file: path.to_owned(),
            tensor: name.clone(),
            problem: "is not part of a BDH model; leaving it out would give wrong answers".to_owned(),
        }),
    }
}

fn read_weight(
    path: &Path,
    source: &mut Source,
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, ImportError> {
    let wrong = |problem| ImportError::Tensor { file: path.to_owned(), tensor: name.to_owned(), problem };
    let view = source.tensors.get(name).ok_or_else(|| wrong(missing(&source.tensors)))?;
    if view.shape != shape {
        return Err(wrong(format!("has shape {:?}, but the configuration requires {shape:?}", view.shape)));
    }
    if !is_float(view) {
        return Err(wrong(format!("holds {}; save f32, f64, bf16 or f16", view.dtype)));
    }
    let file: &mut File = &mut source.file;
    let numbers =
        view.read(file).map_err(|error| ImportError::Unreadable { file: path.to_owned(), source: error })?;
    match numbers.iter().position(|number| !number.is_finite()) {
        None => Ok(numbers),
        Some(index) => Err(wrong(format!(
            "is {} at index {index}, not a finite f32; use a checkpoint from before training diverged",
            numbers[index]
        ))),
    }
}

fn is_float(view: &View) -> bool {
    use safetensors::Dtype;
    matches!(view.dtype, Dtype::F32 | Dtype::F64 | Dtype::BF16 | Dtype::F16)
}
