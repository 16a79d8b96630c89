//! What the tests share: checkpoint folders made to order, the reference figures, random weights.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use hatchery_bdh::{Model, random_at};
use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, TRAINED_BLOCK_KEY},
    model::{ModelConfig, RawModelConfig},
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tempfile::TempDir;

/// A tensor as it stands in a file.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn f32(name: &str, shape: Vec<usize>, values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { name: name.into(), dtype: Dtype::F32, shape, bytes }
    }

    pub(crate) fn to_f32(&self) -> Vec<f32> {
        self.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.bytes.as_chunks().0.iter().map(|b| u8::try_from(i64::from_le_bytes(*b)).unwrap()).collect()
    }
}

/// `model.safetensors` with these tensors.
pub(crate) fn weight_file(tensors: &[Tensor], trained_block: Option<&str>) -> Vec<u8> {
    let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    metadata.extend(trained_block.map(|block| (TRAINED_BLOCK_KEY.to_owned(), block.to_owned())));
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap();
        (tensor.name.as_str(), view)
    });
    safetensors::serialize(views, Some(metadata)).unwrap()
}

/// A checkpoint folder with these two files.
pub(crate) fn folder(config: &str, weights: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(CONFIG_FILE), config).unwrap();
    fs::write(folder.path().join(MODEL_FILE), weights).unwrap();
    folder
}

/// Loads a model from a folder made of `tensors`.
pub(crate) fn model(config: &ModelConfig, tensors: &[Tensor], trained_block: Option<&str>) -> Arc<Model> {
    let config = serde_json::to_string(config).unwrap();
    let folder = folder(&config, &weight_file(tensors, trained_block));
    Arc::new(Model::load(folder.path()).unwrap())
}

/// Weights N(0, `deviation`) for the shape.
pub(crate) fn random_weights(config: &ModelConfig, seed: u64, deviation: f64) -> Vec<Tensor> {
    let mut draws = 0..;
    let mut normal = || {
        let mut uniform = || random_at(seed, draws.next().unwrap());
        let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        (deviation * radius * (std::f64::consts::TAU * uniform()).cos()) as f32
    };
    let tensors = config.weights().map(|(name, shape)| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| normal()).collect();
        Tensor::f32(name, shape, &values)
    });
    tensors.to_vec()
}

/// Bytes without any pattern.
pub(crate) fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    (0..count as u64).map(|draw| (random_at(seed, draw) * 256.0) as u8).collect()
}

pub(crate) fn shape(n_layer: u32, n_embd: u32, n_head: u32, multiplier: u32) -> ModelConfig {
    ModelConfig::new(RawModelConfig {
        n_layer,
        n_embd,
        n_head,
        mlp_internal_dim_multiplier: multiplier,
        dropout: 0.0,
        vocab_size: 256,
    })
    .unwrap()
}

/// The figures of one reference configuration.
pub(crate) struct Reference {
    pub(crate) config: ModelConfig,
    pub(crate) tensors: HashMap<String, Tensor>,
}

impl Reference {
    pub(crate) const NAMES: [&str; 2] = ["two-layer", "three-head"];

    pub(crate) fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../trainer/tests/data")
            .join(format!("{name}.safetensors"));
        let bytes = fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().as_ref().unwrap();
        let field = |key: &str| metadata[key].parse().unwrap();
        let config =
            shape(field("n_layer"), field("n_embd"), field("n_head"), field("mlp_internal_dim_multiplier"));
        let tensors = SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let tensor = Tensor {
                    name: name.clone(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    bytes: view.data().to_vec(),
                };
                (name, tensor)
            })
            .collect();
        Self { config, tensors }
    }

    /// The weights under their public names.
    pub(crate) fn weights(&self) -> Vec<Tensor> {
        let named = self.config.weights().map(|(name, _)| Tensor {
            name: name.to_owned(),
            ..self.tensors[&format!("weights.{name}")].clone()
        });
        named.to_vec()
    }

    pub(crate) fn model(&self, trained_block: Option<&str>) -> Arc<Model> {
        model(&self.config, &self.weights(), trained_block)
    }
}

/// Largest difference, relative to the largest magnitude of `expected`.
pub(crate) fn relative_difference<E: Copy + Into<f64>>(actual: &[f32], expected: &[E]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let magnitude = expected.iter().map(|e| (*e).into().abs()).fold(0.0, f64::max);
    let pairs = actual.iter().zip(expected);
    pairs.map(|(a, e)| (f64::from(*a) - (*e).into()).abs()).fold(0.0, f64::max) / magnitude
}
