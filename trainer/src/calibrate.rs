//! How fast a device is: a fixed configuration, on bytes that mean nothing.

use std::time::{Duration, Instant};

use hatchery_common::{
    device::Device,
    recipe::{Precision, Recipe},
    trainer::Calibration,
};

use hatchery_trainer_shim as shim;

use crate::{
    data::noise,
    device::{self, torch_device},
    failure::Failure,
    learner::Learner,
    weights::Weights,
};

/// Changes whenever the figures are not comparable with older ones.
const VERSION: u32 = 3;
/// Steps before the clock starts: libtorch chooses kernels and fills its caches.
const WARM_UP_STEPS: u64 = 3;
/// How long to measure.
const MEASURE: Duration = Duration::from_secs(3);

/// Measures `wanted`, or the most preferred device, on the preset `tiny`.
pub fn calibrate(wanted: Option<Device>, threads: u32) -> Result<Calibration, Failure> {
    let found = device::find(wanted)?;
    device::use_threads(threads);
    let recipe = Recipe::parse(Some("tiny"), "", &[]).map_err(Failure::bad_input)?;
    let (batch, block) = (recipe.train.raw().batch, recipe.train.raw().block);
    let torch = torch_device(found.device);
    let weights = Weights::start(&recipe.model, 1)?;
    let precision = device::precision(Precision::Auto, &found);
    // As in a run.
    shim::allow_tf32(precision == Precision::Bf16);
    let mut learner = Learner::new(recipe.model.clone(), &recipe.train, weights, None, torch, precision)?;

    for step in 0..WARM_UP_STEPS {
        wait_for(&learner.step(step, &noise(step, batch, block, torch)?)?)?;
    }
    let (mut step, begun) = (WARM_UP_STEPS, Instant::now());
    while begun.elapsed() < MEASURE {
        // Waiting at each step: on a GPU the clock would otherwise time the launches alone.
        wait_for(&learner.step(step, &noise(step, batch, block, torch)?)?)?;
        step += 1;
    }
    let steps_per_sec = (step - WARM_UP_STEPS) as f64 / begun.elapsed().as_secs_f64();
    let flops_per_sec = steps_per_sec * recipe.model.flops_per_step(batch, block);
    Ok(Calibration { device: found.device, steps_per_sec, flops_per_sec, version: VERSION })
}

fn wait_for(loss: &tch::Tensor) -> Result<f64, Failure> {
    Ok(f64::try_from(loss)?)
}
