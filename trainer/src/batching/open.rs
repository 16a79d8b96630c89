//! A checkpoint made ready to answer many at once on a device.

use std::{path::Path, time::Instant};

use hatchery_bdh::{RawSamplingParams, Sampler, SamplingParams, Window};
use hatchery_common::{answerer::Pace, device::DeviceKind, recipe::Precision, trainer::TrainerDevice};
use hatchery_trainer_shim as shim;
use tch::TchError;

use super::Batcher;
use crate::{
    checkpoint::{CheckpointError, read_model},
    device::{self, available_bytes},
    fused::kernels_for,
    recurrent::Recurrent,
    torch_error::first_line,
};

/// Most answers at once, however much memory there is: beyond it a byte takes its time in proportion.
pub const AT_ONCE_MAX: usize = 64;
/// Answers at once on a processor: it is there to see that all goes, `hatchery-bdh` is faster.
const AT_ONCE_ON_CPU: usize = 8;
/// The part of a GPU's free memory that streams may take: products need room too, and others may come.
const MEMORY_SHARE: f64 = 0.5;
/// Numbers of streams for which the pace is measured, beside the most.
const MEASURED: [usize; 3] = [1, 8, 32];
/// Steps before the clock starts, in which libtorch chooses its kernels; and those on the clock.
const WARM_UP_STEPS: usize = 5;
const TIMED_STEPS: usize = 10;

/// Why a checkpoint cannot answer so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Nobody knows how far it can see.
    #[error(
        "the checkpoint does not record its training block, without which its memory has no bound; \
         `hatchery-trainer generate` on the device cpu takes it without"
    )]
    NoBlock,
    /// Not on this device.
    #[error("batched answers need an NVIDIA GPU, or a processor for tests; {0} is neither")]
    Device(String),
    /// The device has no room.
    #[error(
        "{device} has {free_bytes} bytes free, half of which stays free; one answer takes {stream_bytes}"
    )]
    NoRoom { device: String, free_bytes: u64, stream_bytes: u64 },
    #[error("libtorch: {}", first_line(.0))]
    Torch(#[from] TchError),
}

impl Batcher {
    /// Places the model in `folder` on `device`, with room for as many answers at once as there is memory for.
    pub fn open(folder: &Path, device: &TrainerDevice, precision: Precision) -> Result<Self, OpenError> {
        let model = read_model(folder)?;
        let chunk_bytes = Window::default_chunk_bytes(model.trained_block.ok_or(OpenError::NoBlock)?);
        let torch = device::torch_device(device.device);
        // Answers are to be those of a processor, as near as sums in another order can be.
        shim::allow_tf32(false);
        let at_once_max = match device.device.kind {
            DeviceKind::Cpu => AT_ONCE_ON_CPU,
            DeviceKind::Mps => return Err(OpenError::Device(device.name.clone())),
            DeviceKind::Cuda => {
                // Before a device has been used it does not say what it has.
                drop(tch::Tensor::f_zeros([1], (tch::Kind::Float, torch))?);
                let held_bytes = Recurrent::held_bytes(&model.config, chunk_bytes);
                let free_bytes = available_bytes(device).saturating_sub(held_bytes);
                let stream_bytes = Recurrent::stream_bytes(&model.config, precision, chunk_bytes);
                let streams = (MEMORY_SHARE * free_bytes as f64) as u64 / stream_bytes.max(1);
                if streams < 2 {
                    return Err(OpenError::NoRoom { device: device.name.clone(), free_bytes, stream_bytes });
                }
                usize::try_from(streams - 1).unwrap_or(AT_ONCE_MAX).min(AT_ONCE_MAX)
            }
        };
        let streams = at_once_max + 1;
        let mut engine =
            Recurrent::new(&model.config, &model.weights, torch, precision, chunk_bytes, streams)?;
        let no_kernels = match kernels_for(&model.config, engine.operands(), torch) {
            Some(Ok(kernels)) => engine.use_kernels_if_right(&kernels)?.err(),
            Some(Err(why)) => Some(why),
            None => None,
        };
        if let Some(why) = no_kernels {
            eprintln!("answers are slower than they could be: {why}");
        }
        Ok(Self::new(engine, model.config.vocabulary(), at_once_max))
    }

    /// How long a byte of each of some answers takes, choosing it included. To be asked before the first answer.
    pub fn pace(&mut self) -> Result<Vec<Pace>, TchError> {
        let most = self.at_once_max();
        let counts = MEASURED.into_iter().filter(|count| *count < most).chain([most]);
        let pace = counts.map(|count| {
            let secs_per_step = self.secs_per_step(count)?;
            Ok(Pace { sequences: count as u32, secs_per_step })
        });
        pace.collect()
    }

    fn secs_per_step(&mut self, count: usize) -> Result<f64, TchError> {
        let sampling = SamplingParams::new(RawSamplingParams::default()).unwrap_or_default();
        let mut samplers = vec![Sampler::new(&sampling); count];
        let mut bytes = vec![b'\n'; count];
        let mut begun = Instant::now();
        for step in 0..WARM_UP_STEPS + TIMED_STEPS {
            if step == WARM_UP_STEPS {
                begun = Instant::now();
            }
            let logits = self.engine.feed(0, &vec![step as u64; count], &bytes)?;
            let each = samplers.iter_mut().zip(logits.chunks_exact(self.vocabulary));
            for ((sampler, logits), byte) in each.zip(&mut bytes) {
                *byte = sampler.choose(logits).unwrap_or_default();
            }
        }
        let secs = begun.elapsed().as_secs_f64();
        (0..count).try_for_each(|stream| self.engine.clear(stream))?;
        Ok(secs / TIMED_STEPS as f64)
    }
}
