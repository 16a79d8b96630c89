//! One contender's turn: this trainer, one way or another, in a process of its own.

use std::{path::Path, time::Instant};

use anyhow::Context;

use hatchery_common::{device::Device, recipe::Precision};
use hatchery_trainer::{data::Batch, device, ffi, fused::Measured, learner::Learner, weights::Weights};
use hatchery_trainer_shim as shim;
use tch::{Device as TorchDevice, Tensor};

use super::{
    Contender,
    task::{self, Found, Task},
};

/// Calls of each operation that is timed.
const REPEATS: usize = 30;

/// Times each operation between the products.
pub(super) fn measure(folder: &Path) -> anyhow::Result<Measured> {
    let (task, weights, _) = task::read(folder)?;
    let (mut learner, torch) = learner(task, weights)?;
    if !learner.has_fused() {
        learner.use_libtorchs_operations()?;
    }
    learner.measure(REPEATS, &|| wait_for(torch))?.context("there are no such operations on this device")
}

fn learner(task: Task, weights: Weights) -> anyhow::Result<(Learner, TorchDevice)> {
    let wanted: Device = task.device.parse().map_err(anyhow::Error::msg)?;
    let torch = device::torch_device(wanted);
    let precision = if task.is_bf16 { Precision::Bf16 } else { Precision::F32 };
    shim::allow_tf32(task.is_bf16);
    Ok((Learner::new(task.model, &task.train, weights, None, torch, precision)?, torch))
}

/// Takes the turn. Fails where the contender is not what was asked for, such as kernels that cannot be had.
pub(super) fn take(contender: Contender, folder: &Path) -> anyhow::Result<Found> {
    let (task, weights, windows) = task::read(folder)?;
    let (rows, steps) = (task.train.raw().batch as usize, task.warm_up_steps + task.steps);
    let Task { warm_up_steps, steps_per_look, .. } = task;
    let (mut learner, torch) = learner(task, weights)?;
    match contender {
        Contender::Kernels => {
            if !learner.has_kernels() {
                let why = learner.slower_because().unwrap_or("they are for NVIDIA's GPUs");
                anyhow::bail!("there are no kernels on this device: {why}");
            }
        }
        Contender::Operations => learner.use_libtorchs_operations()?,
        Contender::Autograd => learner.use_plain_path(),
        Contender::Eager | Contender::Compiled => anyhow::bail!("{} is python's", contender.name()),
    }
    let windows: Vec<&[u8]> = windows.chunks_exact(windows.len() / steps as usize).collect();
    let mut losses: Vec<Tensor> = Vec::with_capacity(windows.len());
    let (mut step_secs, mut host_secs, mut is_first_of_look) = (Vec::new(), Vec::new(), false);
    let mut looked = Instant::now();
    for (step, windows) in windows.into_iter().enumerate() {
        let asked = Instant::now();
        let batch = Batch::from_windows(windows, rows, torch)?;
        losses.push(learner.step(step as u64, &batch)?);
        // Only while nothing else is asked for: a device takes no more than so many orders, and then the host waits for it.
        if is_first_of_look {
            host_secs.push(asked.elapsed().as_secs_f64());
        }
        is_first_of_look = false;
        let done = step as u32 + 1;
        let timed = done.saturating_sub(warm_up_steps);
        if done == warm_up_steps || timed > 0 && timed.is_multiple_of(steps_per_look) {
            wait_for(torch);
            if timed > 0 {
                step_secs.push(looked.elapsed().as_secs_f64() / f64::from(steps_per_look));
            }
            is_first_of_look = true;
            looked = Instant::now();
        }
    }
    let losses = losses.iter().map(|loss| Ok(f64::try_from(loss)?)).collect::<anyhow::Result<Vec<f64>>>()?;
    if let Some(step) = losses.iter().position(|loss| !loss.is_finite()) {
        anyhow::bail!("the loss of step {} is not a number", step + 1);
    }
    Ok(Found { step_secs, host_secs, memory_bytes: memory_bytes(torch), losses })
}

fn wait_for(device: TorchDevice) {
    if let TorchDevice::Cuda(index) = device {
        shim::synchronize_cuda(index as u32);
    }
}

fn memory_bytes(device: TorchDevice) -> u64 {
    match device {
        TorchDevice::Cuda(index) => {
            shim::cuda_memory(index as u32).map(|memory| memory.tensors_peak).unwrap_or_default()
        }
        _ => ffi::resident_bytes_max(),
    }
}
