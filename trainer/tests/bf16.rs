//! A run in bf16 learns what one in f32 learns: the same text, the same dropout.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod support;

use hatchery_common::recipe::{Precision, RawTrainSpec, TrainSpec};
use hatchery_trainer::{
    data::{Corpus, Sampler},
    learner::Learner,
    weights::Weights,
};
use support::{corpus, small_model};
use tch::Device;

const STEPS: u64 = 500;
/// Single steps differ by more, with whichever neurons change sides of their relu.
const WINDOW: usize = 50;
/// The most that the mean of a window may differ, as a share of it.
const TOLERANCE: f64 = 0.01;

/// The mean loss of each window of steps.
fn losses(precision: Precision) -> Vec<f64> {
    let raw = RawTrainSpec { steps: STEPS, batch: 8, block: 32, seed: 3, ..Default::default() };
    let spec = TrainSpec::new(raw).unwrap();
    let corpus = Corpus::open(&corpus()).unwrap();
    let sampler = Sampler::new(&spec, corpus.len()).unwrap();
    let weights = Weights::start(&small_model(), 3).unwrap();
    let mut learner = Learner::new(small_model(), &spec, weights, None, Device::Cpu, precision).unwrap();
    let losses: Vec<f64> = (0..STEPS)
        .map(|step| {
            let batch = corpus.batch(&sampler.starts(step), sampler.block(), Device::Cpu).unwrap();
            f64::try_from(learner.step(step, &batch).unwrap()).unwrap()
        })
        .collect();
    losses.chunks(WINDOW).map(|window| window.iter().sum::<f64>() / WINDOW as f64).collect()
}

#[test]
fn the_curves_lie_within_a_percent() {
    tch::set_num_threads(1);
    let (bf16, f32) = (losses(Precision::Bf16), losses(Precision::F32));
    for (window, (bf16, f32)) in bf16.iter().zip(&f32).enumerate() {
        let apart = (bf16 / f32 - 1.0).abs();
        assert!(apart < TOLERANCE, "window {window}: {bf16:.4} beside {f32:.4}");
    }
    assert!(f32[9] < f32[0] - 1.0, "it learns: {:.2} to {:.2}", f32[0], f32[9]);
}
