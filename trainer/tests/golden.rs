//! The figures of the public implementation (PyTorch, CPU, f32), for two small shapes; and the same equations rebuilt
//! there in f64 (`data/exact.py`).
//!
//! Measures: logits by the largest difference against the largest logit; gradients and weights by the norm of the
//! difference against the norm, tensor by tensor, because single numbers flip with a ReLU's side.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{collections::HashMap, fs, sync::Arc};

use hatchery_bdh::{Engine, Generation, RawSamplingParams, SamplingParams, Window};
use hatchery_common::{
    model::{ModelConfig, RawModelConfig},
    recipe::{Precision, RawTrainSpec, TrainSpec},
};
use hatchery_trainer::{
    data::Batch,
    fast::Fast,
    learner::Learner,
    model::{Model, Pass},
    optimizer::AdamW,
    weights::Weights,
};
use safetensors::{Dtype, SafeTensors};
use tch::{Device, IndexOp, Kind, Tensor};

const SHAPES: [&str; 2] = ["two-layer", "three-head"];

fn file(name: &str) -> Vec<u8> {
    fs::read(format!("{}/tests/data/{name}.safetensors", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn tensors(bytes: &[u8]) -> HashMap<String, Tensor> {
    let tensor = |view: safetensors::tensor::TensorView<'_>| {
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::I64 => Kind::Int64,
            other => panic!("{other}"),
        };
        let shape: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
        Tensor::f_from_data_size(view.data(), &shape, kind).unwrap()
    };
    let tensors = SafeTensors::deserialize(bytes).unwrap().tensors();
    tensors.into_iter().map(|(name, view)| (name, tensor(view))).collect()
}

struct Figures {
    config: ModelConfig,
    steps: u64,
    metadata: HashMap<String, String>,
    tensors: HashMap<String, Tensor>,
}

impl Figures {
    fn read(name: &str) -> Self {
        tch::set_num_threads(1); // the tests run beside one another already
        let bytes = file(name);
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let number = |key: &str| metadata[key].parse().unwrap();
        let config = ModelConfig::new(RawModelConfig {
            n_layer: number("n_layer"),
            n_embd: number("n_embd"),
            dropout: 0.0,
            n_head: number("n_head"),
            mlp_internal_dim_multiplier: number("mlp_internal_dim_multiplier"),
            vocab_size: number("vocab_size"),
        })
        .unwrap();
        let tensors = tensors(&bytes);
        Self { config, steps: u64::from(number("steps")), metadata, tensors }
    }

    fn weights(&self) -> Weights {
        Weights::each(&self.config, |name, _| Ok::<_, ()>(self.tensors[&format!("weights.{name}")].copy()))
            .unwrap()
    }

    fn model(&self, tokens_max: usize) -> Model {
        Model::new(self.config.clone(), self.weights(), Device::Cpu, Precision::F32, tokens_max).unwrap()
    }

    fn batch(&self, step: i64) -> Batch {
        Batch { tokens: self.tensors["tokens"].i(step), targets: self.tensors["targets"].i(step) }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        Vec::<i64>::try_from(&self.tensors[name]).unwrap().into_iter().map(|byte| byte as u8).collect()
    }

    fn losses(&self) -> Vec<f64> {
        Vec::try_from(&self.tensors["losses"]).unwrap()
    }

    fn spec(&self) -> TrainSpec {
        let number = |key: &str| self.metadata[key].parse::<f64>().unwrap();
        let (beta1, beta2) = self.metadata["betas"].split_once(',').unwrap();
        TrainSpec::new(RawTrainSpec {
            lr: number("lr"),
            weight_decay: number("weight_decay"),
            beta1: beta1.parse().unwrap(),
            beta2: beta2.parse().unwrap(),
            epsilon: number("eps"),
            block: self.tensors["tokens"].size()[2] as u32,
            ..Default::default()
        })
        .unwrap()
    }
}

fn scalar(tensor: &Tensor) -> f64 {
    f64::try_from(tensor).unwrap()
}

/// The norm of the difference against the norm of `expected`.
fn norm_error(found: &Tensor, expected: &Tensor) -> f64 {
    let difference = found.detach().to_kind(Kind::Double) - expected.to_kind(Kind::Double);
    scalar(&difference.norm()) / scalar(&expected.to_kind(Kind::Double).norm())
}

#[test]
fn logits_and_loss_are_the_references() {
    for name in SHAPES {
        let figures = Figures::read(name);
        let batch = figures.batch(0);
        let model = figures.model(batch.tokens.size()[1] as usize);
        let expected = &figures.tensors["logits"];
        let found = model.logits(&batch.tokens, Pass::Reading).unwrap();
        let error = scalar(&(found - expected).abs().max()) / scalar(&expected.abs().max());
        println!("{name}: logits differ by {error:.1e}");
        assert!(error <= 1e-5, "{name}: logits differ by {error:e}");

        let loss = scalar(&model.loss(&batch.tokens, &batch.targets, Pass::Reading).unwrap());
        let error = (loss / figures.losses()[0] - 1.0).abs();
        println!("{name}: loss differs by {error:.1e}");
        assert!(error <= 1e-5, "{name}: loss {loss} differs by {error:e}");
    }
}

#[test]
fn gradients_are_the_references() {
    for name in SHAPES {
        let figures = Figures::read(name);
        let batch = figures.batch(0);
        let model = figures.model(batch.tokens.size()[1] as usize);
        let loss = model.loss(&batch.tokens, &batch.targets, Pass::Training(None)).unwrap();
        let gradients = Tensor::run_backward(&[loss], &model.weights().all(), false, false);
        let mut fast = Fast::<f32>::new(&figures.config, batch.tokens.size()[1] as usize, 2).unwrap();
        let (fast_loss, by_hand) = fast.loss_and_gradients(model.weights(), &batch, None).unwrap();
        assert!((fast_loss / figures.losses()[0] - 1.0).abs() <= 1e-5, "{name}: loss {fast_loss}");
        for (path, gradients) in [("plain", gradients), ("fast", by_hand)] {
            for ((weight, _), gradient) in figures.config.weights().into_iter().zip(&gradients) {
                let error = norm_error(gradient, &figures.tensors[&format!("grad.{weight}")]);
                println!("{name}: {path} gradient of {weight} differs by {error:.1e}");
                assert!(error <= 1e-4, "{name}: {path} gradient of {weight} differs by {error:e}");
            }
        }
    }
}

#[test]
fn twenty_adamw_steps_are_the_references() {
    for name in SHAPES {
        let figures = Figures::read(name);
        let mut learner = Learner::new(
            figures.config.clone(),
            &figures.spec(),
            figures.weights(),
            None,
            Device::Cpu,
            Precision::F32,
        )
        .unwrap();
        for (step, expected) in (0..figures.steps).zip(figures.losses()) {
            let loss = scalar(&learner.step(step, &figures.batch(step as i64)).unwrap());
            let error = (loss / expected - 1.0).abs();
            assert!(error <= 1e-5, "{name}: loss {loss} before step {step} differs by {error:e}");
        }
        for ((weight, _), found) in figures.config.weights().into_iter().zip(learner.model().weights().all())
        {
            let error = norm_error(found, &figures.tensors[&format!("after.{weight}")]);
            println!("{name}: {weight} after {} steps differs by {error:.1e}", figures.steps);
            assert!(error <= 1e-4, "{name}: {weight} after all steps differs by {error:e}");
        }
    }
}

/// Every number of the reference in f64, by both paths: logits, loss, gradients, 20 AdamW steps.
#[test]
fn in_f64_all_figures_are_the_references_to_1e_12() {
    const KEPT: i64 = 7;
    for name in SHAPES {
        let (figures, exact) = (Figures::read(name), tensors(&file(&format!("{name}-f64"))));
        let check = |key: &str, found: &Tensor| {
            assert_eq!(found.kind(), Kind::Double, "{name}: {key}");
            let found = found.detach().flatten(0, -1).slice(0, 0, None, KEPT);
            let error = norm_error(&found, &exact[key]);
            println!("{name}: {key} differs by {error:.1e}");
            assert!(error <= 1e-12, "{name}: {key} differs by {error:e}");
        };
        let losses = Vec::<f64>::try_from(&exact["losses"]).unwrap();
        let batch = figures.batch(0);
        let tokens = batch.tokens.size()[1] as usize;
        let weights = Weights::each(&figures.config, |weight, _| {
            Ok::<_, ()>(figures.tensors[&format!("weights.{weight}")].to_kind(Kind::Double))
        });
        let config = figures.config.clone();
        let mut model = Model::new(config, weights.unwrap(), Device::Cpu, Precision::F32, tokens).unwrap();
        check("logits", &model.logits(&batch.tokens, Pass::Reading).unwrap());
        let loss = model.loss(&batch.tokens, &batch.targets, Pass::Training(None)).unwrap();
        assert!((scalar(&loss) / losses[0] - 1.0).abs() <= 1e-12, "{name}: {}", scalar(&loss));
        let names = figures.config.weights().map(|(weight, _)| weight);
        let plain = Tensor::run_backward(&[loss], &model.weights().all(), false, false);
        names.iter().zip(&plain).for_each(|(weight, gradient)| check(&format!("grad.{weight}"), gradient));

        let mut fast = Fast::<f64>::new(&figures.config, tokens, 2).unwrap();
        let mut optimizer = AdamW::new(&figures.spec(), model.weights()).unwrap();
        for (step, expected) in losses.into_iter().enumerate() {
            let batch = figures.batch(step as i64);
            let (loss, mut gradients) = fast.loss_and_gradients(model.weights(), &batch, None).unwrap();
            assert!((loss / expected - 1.0).abs() <= 1e-12, "{name}: loss {loss} before step {step}");
            if step == 0 {
                names
                    .iter()
                    .zip(&gradients)
                    .for_each(|(weight, gradient)| check(&format!("grad.{weight}"), gradient));
            }
            optimizer.update(model.weights_mut(), &mut gradients, step as u64).unwrap();
        }
        names
            .iter()
            .zip(model.weights().all())
            .for_each(|(weight, found)| check(&format!("after.{weight}"), found));
    }
}

#[test]
fn the_greedy_continuation_is_the_references_by_both_engines() {
    for name in SHAPES {
        let figures = Figures::read(name);
        let (prompt, expected) = (figures.bytes("prompt"), figures.bytes("greedy"));

        let model = figures.model(expected.len());
        let mut bytes = prompt.clone();
        while bytes.len() < expected.len() {
            let tokens = Tensor::from_slice(&bytes).to_kind(Kind::Int64).unsqueeze(0);
            let logits = model.logits(&tokens, Pass::Reading).unwrap();
            bytes.push(logits.i((0, -1)).argmax(None, false).int64_value(&[]) as u8);
        }
        assert_eq!(bytes, expected, "{name}: plain path");

        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), serde_json::to_vec(&figures.config).unwrap()).unwrap();
        let named: Vec<(String, Tensor)> = (figures.config.weights().into_iter())
            .map(|(weight, _)| (weight.to_owned(), figures.tensors[&format!("weights.{weight}")].copy()))
            .collect();
        // libtorch's own writer: a file that this crate has not made.
        Tensor::write_safetensors(&named, folder.path().join("model.safetensors")).unwrap();
        let model = Arc::new(hatchery_bdh::Model::load(folder.path()).unwrap());
        let params = SamplingParams::new(RawSamplingParams { greedy: true, ..Default::default() }).unwrap();
        let engine = Engine::new(model, Window::None).unwrap();
        let new = Generation::new(engine, &prompt, &params, expected.len() - prompt.len());
        assert_eq!(prompt.into_iter().chain(new).collect::<Vec<_>>(), expected, "{name}: recurrent engine");
    }
}
