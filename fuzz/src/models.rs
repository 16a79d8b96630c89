//! Models from elsewhere: a checkpoint folder, and a file of the public code.

use std::{env, fs, path::Path};

use hatchery_bdh::{ImportOptions, Imported, Model};
use hatchery_common::{
    checkpoint::{CONFIG_FILE, MODEL_FILE, TRAINED_BLOCK_KEY},
    model::{ModelConfig, RawModelConfig},
};
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;

/// Where files are not synced to a disk for nothing, unless somebody has said where they are to be.
const IN_MEMORY: &str = "/dev/shm";

/// A folder for what is read from files.
fn scratch() -> TempDir {
    let in_memory = Path::new(IN_MEMORY);
    let is_free = env::var_os("TMPDIR").is_none() && in_memory.is_dir();
    let folder = if is_free { tempfile::tempdir_in(in_memory) } else { tempfile::tempdir() };
    folder.expect("there is a folder for scratch")
}

/// A checkpoint folder: two bytes with the length of `config.json`, that file, then `model.safetensors`.
pub(crate) fn folder(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return false };
    let Some((config, weights)) = rest.split_at_checked(u16::from_le_bytes(*length).into()) else {
        return false;
    };
    let scratch = scratch();
    let folder = scratch.path();
    write(&folder.join(CONFIG_FILE), config);
    write(&folder.join(MODEL_FILE), weights);
    let Ok(model) = Model::load(folder) else { return false };
    let again = Model::load(folder).expect("what was read is read again");
    assert_eq!((again.config(), again.identity()), (model.config(), model.identity()));
    let numbers: usize =
        model.config().weights().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert!(numbers * 2 <= weights.len(), "more weights than the file can hold");
    true
}

/// A small folder.
pub(crate) fn folders() -> Vec<Vec<u8>> {
    let config = config();
    let text = serde_json::to_vec(&config).expect("a shape is always JSON");
    vec![[&(text.len() as u16).to_le_bytes()[..], &text, &weights(&config)].concat()]
}

/// A file of the public code.
pub(crate) fn import(bytes: &[u8]) -> bool {
    let scratch = scratch();
    let file = scratch.path().join("import");
    write(&file, bytes);
    // Some files say how many layers there are, and others do not.
    let with_layers = ImportOptions { n_layer: Some(1), ..ImportOptions::default() };
    let read = Imported::read(&file, &ImportOptions::default());
    let Ok(imported) = read.or_else(|_| Imported::read(&file, &with_layers)) else { return false };
    let to = scratch.path().join("imported");
    imported.write(&to).expect("what was imported can be written");
    let model = Model::load(&to).expect("what was written is a checkpoint folder");
    assert_eq!(model.config(), imported.config());
    true
}

/// A state dict in safetensors, and what PyTorch saves.
pub(crate) fn imports() -> Vec<Vec<u8>> {
    let saved: [&[u8]; 3] = [
        include_bytes!("../../bdh/tests/data/bare.pt"),
        include_bytes!("../../bdh/tests/data/class-config.pt"),
        include_bytes!("../../bdh/tests/data/dict-config.pt"),
    ];
    saved.into_iter().map(<[u8]>::to_vec).chain([weights(&config())]).collect()
}

fn config() -> ModelConfig {
    let raw = RawModelConfig {
        n_layer: 1,
        n_embd: 4,
        n_head: 1,
        mlp_internal_dim_multiplier: 1,
        ..RawModelConfig::default()
    };
    ModelConfig::new(raw).expect("a small shape is right")
}

fn weights(config: &ModelConfig) -> Vec<u8> {
    let tensors = config.weights().map(|(name, shape)| {
        let count: usize = shape.iter().product();
        (name, shape, vec![0_u8; count * size_of::<f32>()])
    });
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("the length fits the shape"))
    });
    let metadata = [(TRAINED_BLOCK_KEY.to_owned(), "16".to_owned())].into();
    safetensors::serialize(views, Some(metadata)).expect("plain tensors can be written")
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("there is room for scratch");
}
