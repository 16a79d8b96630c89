//! Checkpoint folders, good and bad.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod support;

use std::fs;

use half::{bf16, f16};
use hatchery_bdh::{Engine, LoadError, Model, Window};
use hatchery_common::{checkpoint::MODEL_FILE, model::ModelConfig};
use safetensors::Dtype;
use support::{Tensor, folder, random_bytes, random_weights, shape, weight_file};

fn config() -> ModelConfig {
    shape(2, 16, 2, 4)
}

fn config_text() -> String {
    serde_json::to_string(&config()).unwrap()
}

fn weights() -> Vec<Tensor> {
    random_weights(&config(), 1, 0.05)
}

fn load(config: &str, weights: &[u8]) -> Result<Model, LoadError> {
    Model::load(folder(config, weights).path())
}

/// The error's text, which must name all of `parts`.
fn assert_refused(config: &str, weights: &[u8], parts: &[&str]) {
    let message = load(config, weights).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

fn logits(model: Model) -> Vec<f32> {
    Engine::new(model.into(), Window::None).unwrap().prefill(&random_bytes(7, 20)).to_vec()
}

#[test]
fn every_kind_of_float_is_read() {
    let reference = logits(load(&config_text(), &weight_file(&weights(), None)).unwrap());
    let as_kind = |dtype: Dtype, encode: fn(f32) -> Vec<u8>| {
        let tensors: Vec<Tensor> = weights()
            .into_iter()
            .map(|tensor| Tensor {
                bytes: tensor.to_f32().into_iter().flat_map(encode).collect(),
                dtype,
                ..tensor
            })
            .collect();
        logits(load(&config_text(), &weight_file(&tensors, None)).unwrap())
    };
    assert_eq!(as_kind(Dtype::F64, |value| f64::from(value).to_le_bytes().to_vec()), reference);
    let half = as_kind(Dtype::F16, |value| f16::from_f32(value).to_le_bytes().to_vec());
    assert!(support::relative_difference(&half, &reference) < 0.01);
    let brain = as_kind(Dtype::BF16, |value| bf16::from_f32(value).to_le_bytes().to_vec());
    assert!(support::relative_difference(&brain, &reference) < 0.1);
}

#[test]
fn what_the_public_code_saves_beside_the_weights_is_passed_over() {
    let mut tensors = weights();
    tensors.push(Tensor::f32("attn.freqs", vec![1, 1, 1, 2], &[0.1, 0.2]));
    tensors.push(Tensor::f32("lm_gate", vec![2, 1], &[0.1, 0.2]));
    assert!(load(&config_text(), &weight_file(&tensors, Some("256"))).is_ok());
}

#[test]
fn missing_files_are_named() {
    let folder = folder(&config_text(), b"");
    fs::remove_file(folder.path().join(MODEL_FILE)).unwrap();
    let message = Model::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("model.safetensors"), "{message}");
    fs::create_dir(folder.path().join(MODEL_FILE)).unwrap();
    let message = Model::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("not a regular file"), "{message}");
    let message = Model::load(&folder.path().join("nowhere")).unwrap_err().to_string();
    assert!(message.contains("config.json"), "{message}");
}

#[test]
fn wrong_configurations_are_refused() {
    let weights = weight_file(&weights(), None);
    let long = " ".repeat(1 << 20);
    for (config, parts) in [
        ("", &["config.json", "EOF"][..]),
        ("[1, 2]", &["config.json"]),
        (r#"{"n_embd": "many"}"#, &["config.json", "many"]),
        (r#"{"n_embd": 130}"#, &["config.json", "n_embd", "130 is not divisible by n_head = 4"]),
        (r#"{"n_layer": 0}"#, &["config.json", "n_layer"]),
        (long.as_str(), &["config.json", "limit"]),
    ] {
        assert_refused(config, &weights, parts);
    }
}

#[test]
fn a_damaged_file_is_refused_wherever_it_is_cut() {
    let whole = weight_file(&weights(), None);
    for length in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        assert_refused(
            &config_text(),
            &whole[..length],
            &["model.safetensors", "fetch the checkpoint again"],
        );
    }
    let mut longer = whole.clone();
    longer.push(0);
    assert_refused(&config_text(), &longer, &["model.safetensors", "the file has"]);
    for claimed in [u64::MAX, 1 << 40, whole.len() as u64, 0] {
        let mut absurd = whole.clone();
        absurd[..8].copy_from_slice(&claimed.to_le_bytes());
        assert_refused(&config_text(), &absurd, &["model.safetensors", "header"]);
    }
    let mut not_json = whole.clone();
    not_json[8] = b'?';
    assert_refused(&config_text(), &not_json, &["model.safetensors", "header is invalid"]);
}

#[test]
fn offsets_that_overlap_or_overflow_are_refused() {
    for header in [
        r#"{"encoder":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#,
        r#"{"encoder":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
        r#"{"encoder":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"decoder":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        r#"{"encoder":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
        r#"{"encoder":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}"#,
    ] {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&[0; 12]);
        assert_refused(&config_text(), &file, &["model.safetensors", "header is invalid"]);
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let changed = |change: fn(&mut Vec<Tensor>)| {
        let mut tensors = weights();
        change(&mut tensors);
        weight_file(&tensors, None)
    };
    let cases: [(Vec<u8>, &[&str]); 6] = [
        (
            changed(|tensors| {
                tensors.remove(2);
            }),
            &["`encoder_v` is missing", "the file has: ", "lm_head"],
        ),
        (changed(|tensors| tensors[1].shape = vec![2, 32, 16]), &["`encoder`", "[2, 32, 16]", "[2, 16, 32]"]),
        (
            changed(|tensors| {
                tensors[4] = Tensor { dtype: Dtype::I32, ..tensors[4].clone() };
            }),
            &["`lm_head` holds I32", "convert"],
        ),
        (
            changed(|tensors| tensors.push(Tensor::f32("bias", vec![1], &[0.0]))),
            &["`bias` is not part of a BDH model"],
        ),
        (
            changed(|tensors| tensors[3].bytes[40..44].copy_from_slice(&f32::NAN.to_le_bytes())),
            &["`decoder` is NaN at index 10"],
        ),
        (
            changed(|tensors| {
                tensors[0].dtype = Dtype::F64;
                tensors[0].bytes = 1e300_f64.to_le_bytes().repeat(256 * 16);
            }),
            &["`embed.weight` is inf at index 0", "not a finite f32"],
        ),
    ];
    for (file, parts) in cases {
        assert_refused(&config_text(), &file, parts);
    }
    // Another shape's configuration beside the weights.
    let other = serde_json::to_string(&shape(2, 32, 2, 4)).unwrap();
    assert_refused(&other, &weight_file(&weights(), None), &["`embed.weight`", "same checkpoint"]);
}

#[test]
fn a_wrong_trained_block_is_refused() {
    for block in ["", "-1", "0", "many", "99999999999999999999", "4294967295"] {
        let file = weight_file(&weights(), Some(block));
        assert_refused(&config_text(), &file, &["model.safetensors", "hatchery.block"]);
    }
}
