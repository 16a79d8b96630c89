//! Reading a checkpoint folder. The files may come from anywhere: nothing in them is believed before it is checked,
//! and nothing is allocated that the files' own size does not justify.

mod error;
mod weight_file;

use std::{io::Read, path::Path};

use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, SERVING_FILE},
    digest::Digest,
    model::{ModelConfig, RawModelConfig},
};

pub use self::error::LoadError;
pub(crate) use self::weight_file::{WeightFile, append_as_f32, is_passed_over, open_regular};
use crate::{
    model::{Layers, LayersIn, Model, Rows, Tiles},
    number::{Number, Precision},
    rope::frequencies,
};

/// Longest `config.json`.
const CONFIG_BYTES_MAX: u64 = 64 << 10;

impl Model {
    /// Reads `config.json` and `model.safetensors` from a checkpoint `folder`; other files there do not matter.
    ///
    /// Weights may be f32, f64, bf16 or f16 and are kept as f32. Names, shapes and values are checked; an error names
    /// the file, the tensor and what to do.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        Self::load_in(folder, Precision::F32)
    }

    /// The same with the layers' weights, and the states of engines to come, in `precision`.
    pub fn load_in(folder: &Path, precision: Precision) -> Result<Self, LoadError> {
        load(folder, MODEL_FILE, precision)
    }

    /// The model of a checkpoint `folder` as [`write_serving_weights`](crate::write_serving_weights) has left it for
    /// nodes that only answer.
    pub fn load_serving(folder: &Path) -> Result<Self, LoadError> {
        load(folder, SERVING_FILE, Precision::F32)
    }
}

/// Reads the model in `folder` whose weights are in the file called `weights`, its layers in `precision`.
fn load(folder: &Path, weights: &str, precision: Precision) -> Result<Model, LoadError> {
    let config = load_config(&folder.join(CONFIG_FILE))?;
    let mut file = WeightFile::open(folder.join(weights))?;
    file.check_tensors(&config)?;
    let trained_block = file.trained_block()?;
    let mut identity = Identity::of_shape(&config);
    let mut read = |name| {
        let values = file.read(name)?;
        identity.add(&values);
        Ok::<_, LoadError>(values)
    };
    Ok(Model {
        trained_block,
        embed: Rows::new(&read("embed.weight")?, config.width()),
        layers: match precision {
            Precision::F32 => LayersIn::F32(layers(&config, &mut read)?),
            Precision::Bf16 => LayersIn::Bf16(layers(&config, &mut read)?),
        },
        lm_head: Tiles::new(&read("lm_head")?, config.width(), config.vocabulary()),
        frequencies: frequencies(config.neurons_per_head()),
        identity: identity.finish(),
        config,
    })
}

fn layers<N: Number>(
    config: &ModelConfig,
    mut read: impl FnMut(&'static str) -> Result<Vec<f32>, LoadError>,
) -> Result<Layers<N>, LoadError> {
    let (width, neurons_per_head) = (config.width(), config.neurons_per_head());
    Ok(Layers {
        neurons_per_head,
        encoder: Tiles::new(&read("encoder")?, width, neurons_per_head),
        encoder_v: Rows::transposed(&read("encoder_v")?, width, neurons_per_head),
        decoder: Tiles::new(&read("decoder")?, neurons_per_head, width),
    })
}

/// The digest under construction that [`Model::identity`] gives.
struct Identity(blake3::Hasher);

impl Identity {
    fn of_shape(config: &ModelConfig) -> Self {
        let raw = config.raw();
        let mut hasher = blake3::Hasher::new();
        for field in [raw.n_layer, raw.n_embd, raw.n_head, raw.mlp_internal_dim_multiplier, raw.vocab_size] {
            hasher.update(&field.to_le_bytes());
        }
        Self(hasher)
    }

    fn add(&mut self, weights: &[f32]) {
        const NUMBERS: usize = 16 << 10;
        let mut buffer = Vec::with_capacity(NUMBERS * size_of::<f32>());
        for part in weights.chunks(NUMBERS) {
            buffer.clear();
            buffer.extend(part.iter().flat_map(|weight| weight.to_le_bytes()));
            self.0.update(&buffer);
        }
    }

    fn finish(&self) -> Digest {
        Digest::from_bytes(*self.0.finalize().as_bytes())
    }
}

pub(crate) fn load_config(path: &Path) -> Result<ModelConfig, LoadError> {
    let wrong = |problem: String| LoadError::Config { file: path.to_owned(), problem };
    let unreadable = |source| LoadError::Unreadable { file: path.to_owned(), source };
    let (file, size_bytes) = open_regular(path).map_err(unreadable)?;
    if size_bytes > CONFIG_BYTES_MAX {
        return Err(wrong(format!("it has {size_bytes} bytes, more than the limit of {CONFIG_BYTES_MAX}")));
    }
    let mut text = Vec::new();
    file.take(CONFIG_BYTES_MAX).read_to_end(&mut text).map_err(unreadable)?;
    let raw: RawModelConfig = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    ModelConfig::new(raw).map_err(|error| wrong(error.to_string()))
}
