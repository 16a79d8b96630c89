//! `generate`: text from a checkpoint, on one node or on all.

use std::{
    io::{IsTerminal, Read},
    pin::pin,
};

use futures::StreamExt;
use hatchery_bdh::Utf8Stream;
use hatchery_common::{
    generate::{
        GenerationFinished, GenerationPart, PROMPT_BYTES_MAX, RawSamplingParams, SamplingParams, StopStrings,
    },
    id::{CheckpointId, Name},
    session::ReplicaState,
};
use hatchery_proto::client::{FleetClient, GenerateCall};
use serde::Serialize;

use crate::{
    args::GenerateArgs,
    exit::{Code, Failure, Outcome},
    home::Home,
    output::{self, Output, table},
};

/// One node's whole answer.
#[derive(Debug, Serialize)]
struct Answer {
    node: Name,
    checkpoint: CheckpointId,
    /// The new bytes, bytes that are not UTF-8 replaced.
    text: String,
    /// The new bytes exactly, in hexadecimal.
    bytes_hex: String,
    #[serde(flatten)]
    figures: GenerationFinished,
}

/// `hatchery generate`.
pub(crate) async fn generate(args: GenerateArgs, home: &Home, output: Output) -> Outcome {
    let defaults = RawSamplingParams::default();
    let sampling = SamplingParams::new(RawSamplingParams {
        temperature: args.temperature.unwrap_or(defaults.temperature),
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        seed: args.seed.unwrap_or(defaults.seed),
        greedy: args.greedy,
    })
    .map_err(Failure::usage)?;
    let stop = StopStrings::new(args.stop.into_iter().map(String::into_bytes).collect());
    let call = GenerateCall {
        checkpoint: args.checkpoint_flag.unwrap_or(args.checkpoint),
        node: args.node,
        prompt: prompt(args.prompt)?,
        max_bytes: args.max_bytes,
        sampling,
        stop: stop.map_err(Failure::usage)?,
    };
    let fleet = home.fleet().await?;
    if args.all_nodes {
        return on_all_nodes(&fleet, call, output).await;
    }
    if output == Output::Json {
        return output.print(&ask(&fleet, call, |_| Ok(())).await?, |_| String::new());
    }
    // A character may begin in the prompt and end in the answer.
    let mut text = Utf8Stream::new();
    output::raw(text.push(&call.prompt).as_bytes())?;
    let answer = ask(&fleet, call, |bytes| output::raw(text.push(bytes).as_bytes())).await?;
    output::line(&text.finish())?;
    if std::io::stderr().is_terminal() {
        eprintln!("{}", console::style(figures(&answer)).dim().for_stderr());
    } else {
        eprintln!("{}", figures(&answer));
    }
    Ok(())
}

async fn on_all_nodes(fleet: &FleetClient, mut call: GenerateCall, output: Output) -> Outcome {
    let checkpoint = fleet.checkpoint(&call.checkpoint).await?;
    call.checkpoint = checkpoint.id.to_string();
    let holders = checkpoint
        .replicas
        .iter()
        .filter(|replica| matches!(replica.state, Some(ReplicaState::Ready { .. })))
        .map(|replica| replica.node_name.clone());
    let (mut answers, mut failures) = (Vec::new(), Vec::new());
    for node in holders {
        match ask(fleet, GenerateCall { node: Some(node.to_string()), ..call.clone() }, |_| Ok(())).await {
            Ok(answer) => answers.push(answer),
            Err(failure) => failures.push(format!("{node}: {}", failure.message)),
        }
    }
    if answers.is_empty() && failures.is_empty() {
        return Err(Failure::new(
            Code::Refused,
            format!("no node holds checkpoint {} yet; see `hatchery checkpoints`", checkpoint.id.short()),
        ));
    }
    // What one node cannot do takes nothing from the others' answers.
    output.print(&answers, |answers| {
        let rows = answers.iter().map(|answer| {
            vec![
                answer.node.to_string(),
                format!("{:.0} ms", answer.figures.latency_ms),
                format!("{:.0} ms", answer.figures.first_byte_ms),
                answer.text.replace('\n', "\u{21b5}"),
            ]
        });
        table(&["node", ">latency", ">first byte", "text"], rows)
    })?;
    if failures.is_empty() { Ok(()) } else { Err(Failure::failed(failures.join("\n"))) }
}

/// Asks; new bytes are shown to `show` as they come.
async fn ask(
    fleet: &FleetClient,
    call: GenerateCall,
    mut show: impl FnMut(&[u8]) -> Outcome,
) -> Result<Answer, Failure> {
    let mut parts = pin!(fleet.generate(&call).await?);
    let mut bytes = Vec::new();
    let mut who = None;
    while let Some(part) = parts.next().await {
        match part? {
            GenerationPart::Chosen { node_name, checkpoint, .. } => who = Some((node_name, checkpoint)),
            GenerationPart::Text { bytes: new } => {
                show(&new)?;
                bytes.extend(new);
            }
            GenerationPart::Finished(figures) => {
                let Some((node, checkpoint)) = who else { break };
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let bytes_hex = data_encoding::HEXLOWER.encode(&bytes);
                return Ok(Answer { node, checkpoint, text, bytes_hex, figures });
            }
        }
    }
    Err(Failure::failed("the answer was cut off; the node may have disconnected: try again"))
}

fn figures(answer: &Answer) -> String {
    let figures = &answer.figures;
    let loaded = if figures.loaded { ", model loaded first" } else { "" };
    let device = figures.device.map_or_else(String::new, |device| format!("'s {device}"));
    format!(
        "[{} bytes from {}{device} in {:.0} ms, first after {:.0} ms, checkpoint {}{loaded}, ended at {}]",
        figures.bytes,
        answer.node,
        figures.latency_ms,
        figures.first_byte_ms,
        answer.checkpoint.short(),
        figures.finish_reason.describe()
    )
}

fn prompt(given: String) -> Result<Vec<u8>, Failure> {
    if given != "-" {
        return Ok(given.into_bytes());
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .take(PROMPT_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::failed(format!("cannot read the prompt from stdin: {error}")))?;
    Ok(bytes)
}
