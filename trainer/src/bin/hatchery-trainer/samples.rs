//! `hatchery-trainer generate --samples`: several answers to one prompt, on a processor one after another, on a GPU all at once.

use std::{sync::Arc, time::Instant};

use anyhow::bail;
use data_encoding::HEXLOWER;
use hatchery_bdh::{
    Engine, Generation, Model, RawSamplingParams, SamplingParams, Session, StopStrings, Window,
};
use hatchery_common::{
    device::{Device, DeviceKind},
    digest::Digest,
    generate::{FinishReason, GenerationOrder},
    id::{CheckpointId, RequestId},
    recipe::Precision,
};
use hatchery_trainer::{
    batching::{Batcher, End},
    device,
};
use serde::Serialize;

use crate::{
    args::{Generate, Output},
    print, print_json,
};

/// All answers as JSON.
#[derive(Debug, Serialize)]
struct Answered {
    device: Device,
    /// From the prompt's first byte to the last answer's last; loading left out.
    latency_ms: f64,
    samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct Sample {
    seed: u64,
    /// The new bytes, as hexadecimal digits.
    bytes_hex: String,
    /// The same as text, what is not UTF-8 replaced.
    text: String,
    finish_reason: FinishReason,
}

impl Sample {
    fn new(seed: u64, bytes: &[u8], finish_reason: FinishReason) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        Self { seed, bytes_hex: HEXLOWER.encode(bytes), text, finish_reason }
    }
}

/// What is asked, but for the seeds.
struct Question<'a> {
    args: &'a Generate,
    prompt: &'a [u8],
    params: &'a SamplingParams,
    stop: &'a StopStrings,
}

/// Makes the answers and prints them.
pub(crate) fn generate(
    args: &Generate,
    prompt: &[u8],
    params: &SamplingParams,
    stop: &StopStrings,
) -> anyhow::Result<()> {
    let question = Question { args, prompt, params, stop };
    let (samples, latency_ms) = match args.device.kind {
        DeviceKind::Cpu => question.one_after_another()?,
        DeviceKind::Cuda | DeviceKind::Mps => question.at_once()?,
    };
    if args.output == Output::Json {
        return print_json(&Answered { device: args.device, latency_ms, samples });
    }
    for Sample { seed, text, finish_reason, .. } in &samples {
        print(&format!("--- seed {seed}, to {}\n{text}", finish_reason.describe()))?;
    }
    let bytes: usize = samples.iter().map(|sample| sample.bytes_hex.len() / 2).sum();
    eprintln!(
        "{bytes} bytes in {latency_ms:.0} ms on {}: {:.0} bytes/s",
        args.device,
        1e3 * bytes as f64 / latency_ms
    );
    Ok(())
}

impl Question<'_> {
    fn seeds(&self) -> impl Iterator<Item = u64> {
        let first = self.params.raw().seed;
        (0..u64::from(self.args.samples)).map(move |index| first.wrapping_add(index))
    }

    fn params(&self, seed: u64) -> anyhow::Result<SamplingParams> {
        Ok(SamplingParams::new(RawSamplingParams { seed, ..*self.params.raw() })?)
    }

    /// The prompt is read once.
    fn one_after_another(&self) -> anyhow::Result<(Vec<Sample>, f64)> {
        let model = Arc::new(Model::load(&self.args.checkpoint)?);
        let begun = Instant::now();
        let mut session = Session::new(Engine::new(model, Window::Default)?, self.params);
        session.feed(self.prompt);
        let mut samples = Vec::new();
        for seed in self.seeds() {
            let session = session.clone().with_params(&self.params(seed)?);
            let mut generation =
                Generation::resume(session, b"", self.args.max_bytes as usize).with_stops(self.stop.clone());
            let bytes: Vec<u8> = generation.by_ref().collect();
            if generation.is_broken() {
                return broken();
            }
            let is_stopped = generation.is_stopped();
            let reason = if is_stopped { FinishReason::StopString } else { FinishReason::MaxBytes };
            samples.push(Sample::new(seed, &bytes, reason));
        }
        Ok((samples, begun.elapsed().as_secs_f64() * 1e3))
    }

    fn at_once(&self) -> anyhow::Result<(Vec<Sample>, f64)> {
        let device = device::find(Some(self.args.device))?;
        let mut answers = Batcher::open(&self.args.checkpoint, &device, Precision::F32)?;
        let begun = Instant::now();
        // By seed: what was made, and how it ended.
        let mut made: Vec<(u64, RequestId, Vec<u8>, Option<FinishReason>)> =
            self.seeds().map(|seed| (seed, RequestId::random(), Vec::new(), None)).collect();
        let mut waiting = made.iter().map(|(seed, request, ..)| (*seed, *request)).collect::<Vec<_>>();
        waiting.reverse();
        loop {
            while answers.len() < answers.at_once_max()
                && let Some((seed, request)) = waiting.pop()
            {
                let order = GenerationOrder {
                    // Not looked at: there is one model.
                    checkpoint: CheckpointId(Digest::of(b"")),
                    prompt: self.prompt.to_vec(),
                    max_bytes: self.args.max_bytes,
                    sampling: self.params(seed)?,
                    stop: self.stop.clone(),
                };
                answers.begin(request, order, &[]).map_err(anyhow::Error::msg)?;
            }
            if answers.is_empty() {
                break;
            }
            for new in answers.step()? {
                let Some((_, _, bytes, end)) =
                    made.iter_mut().find(|(_, request, ..)| *request == new.request)
                else {
                    continue;
                };
                bytes.extend(new.bytes);
                match new.end {
                    Some(End::Finished(reason)) => *end = Some(reason),
                    Some(End::Broken) => return broken(),
                    None => {}
                }
            }
        }
        let latency_ms = begun.elapsed().as_secs_f64() * 1e3;
        let sample = |(seed, _, bytes, end): (u64, _, Vec<u8>, Option<FinishReason>)| {
            Sample::new(seed, &bytes, end.unwrap_or_default())
        };
        Ok((made.into_iter().map(sample).collect(), latency_ms))
    }
}

fn broken<T>() -> anyhow::Result<T> {
    bail!("the answers ended early: the model's output is not a number; choose another checkpoint")
}
