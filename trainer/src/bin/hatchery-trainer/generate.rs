//! `hatchery-trainer generate`: the recurrent engine, the same that serves on every node.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Instant,
};

use anyhow::Context;
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use hatchery_bdh::{
    Engine, Generation, Model, RawSamplingParams, SamplingParams, Session, StopStrings, Utf8Stream, Window,
};
use hatchery_common::{device::DeviceKind, generate::FinishReason};
use serde::Serialize;

use crate::{
    args::{Generate, Output},
    print_json, samples,
};

/// An answer as JSON.
#[derive(Debug, Serialize)]
struct Answer {
    /// The new bytes, as hexadecimal digits.
    bytes_hex: String,
    /// The same as text, what is not UTF-8 replaced.
    text: String,
    /// From the prompt's first byte to the answer's last; loading left out.
    latency_ms: f64,
    /// Why there are no more.
    finish_reason: FinishReason,
}

/// Generates, streamed as text or at once as JSON.
pub(crate) fn generate(args: &Generate) -> anyhow::Result<()> {
    let prompt = match (&args.prompt, &args.prompt_hex) {
        (_, Some(hex)) => HEXLOWER_PERMISSIVE
            .decode(hex.as_bytes())
            .context("--prompt-hex must be pairs of hexadecimal digits")?,
        (text, None) => text.clone().unwrap_or_default().into_bytes(),
    };
    let params = sampling(args)?;
    let stop = StopStrings::new(args.stop.iter().map(|text| text.clone().into_bytes()).collect())?;
    if args.samples > 1 || args.device.kind != DeviceKind::Cpu {
        return samples::generate(args, &prompt, &params, &stop);
    }
    let model = Arc::new(Model::load(&args.checkpoint)?);
    let begun = Instant::now();
    let session = match &args.session {
        None => Session::new(Engine::new(model, Window::Default)?, &params),
        Some(file) if says_sampling(args) => Session::load(file, model)?.with_params(&params),
        Some(file) => Session::load(file, model)?,
    };
    let mut generation = Generation::resume(session, &prompt, args.max_bytes as usize).with_stops(stop);
    match args.output {
        Output::Json => {
            let bytes: Vec<u8> = generation.by_ref().collect();
            let latency_ms = begun.elapsed().as_secs_f64() * 1e3;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let finish_reason = finish_reason(&generation);
            print_json(&Answer { bytes_hex: HEXLOWER.encode(&bytes), text, latency_ms, finish_reason })?;
        }
        Output::Text => {
            let (mut stream, mut out, mut count) = (Utf8Stream::new(), io::stdout(), 0);
            for byte in generation.by_ref() {
                count += 1;
                out.write_all(stream.push(&[byte]).as_bytes())?;
                out.flush()?;
            }
            writeln!(out, "{}", stream.finish())?;
            eprintln!(
                "{count} bytes in {:.0} ms, ended at {}",
                begun.elapsed().as_secs_f64() * 1e3,
                finish_reason(&generation).describe()
            );
        }
    }
    anyhow::ensure!(
        !generation.is_broken(),
        "the answer ended early: the model's output is not a number; choose another checkpoint"
    );
    if let Some(file) = &args.save_session {
        generation.session().save(file)?;
    }
    Ok(())
}

/// Whether the command line says anything of how bytes are chosen.
fn says_sampling(args: &Generate) -> bool {
    let numbers = [args.temperature, args.top_p, args.min_p, args.repetition_penalty];
    args.greedy || args.top_k.is_some() || args.seed.is_some() || numbers.iter().any(Option::is_some)
}

fn finish_reason(generation: &Generation) -> FinishReason {
    if generation.is_stopped() { FinishReason::StopString } else { FinishReason::MaxBytes }
}

fn sampling(args: &Generate) -> anyhow::Result<SamplingParams> {
    let defaults = RawSamplingParams::default();
    Ok(SamplingParams::new(RawSamplingParams {
        temperature: args.temperature.unwrap_or(defaults.temperature),
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        seed: args.seed.unwrap_or(defaults.seed),
        greedy: args.greedy,
    })?)
}
