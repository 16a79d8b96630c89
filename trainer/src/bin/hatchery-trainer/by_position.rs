//! `hatchery-trainer eval --by-position`: the loss far beyond the trained block, with the default window and without.

use std::sync::Arc;

use anyhow::Context;
use hatchery_bdh::{Model, PositionLoss, Precision, Window, loss_by_position};
use hatchery_common::{checkpoint::PUBLIC_BLOCK, recipe::DataSpec};
use serde::Serialize;

use crate::{
    args::{self, Eval, Output},
    corpus, print, print_json,
};

/// The last range ends at two to the power of so many blocks.
const DOUBLINGS: u32 = 4;

/// The losses at a range of positions.
#[derive(Debug, Serialize)]
struct Line {
    start: u64,
    end: u64,
    bytes: u64,
    /// Nats per byte, with the default window.
    loss: f64,
    /// The same where all since the start is seen.
    loss_without_window: f64,
}

pub(crate) fn eval(args: &Eval) -> anyhow::Result<()> {
    let precision = match args.precision {
        args::Precision::Auto | args::Precision::F32 => Precision::F32,
        args::Precision::Bf16 => Precision::Bf16,
    };
    let model = Arc::new(Model::load_in(&args.checkpoint, precision)?);
    let corpus = corpus(&DataSpec { paths: args.data.clone(), include: args.include.clone() })?;
    let block = u64::from(args.block.or(model.trained_block()).unwrap_or(PUBLIC_BLOCK));
    let edges: Vec<u64> =
        (0..=DOUBLINGS).map(|doubling| block << doubling).filter(|edge| *edge < corpus.len()).collect();
    let longest = edges.last().with_context(|| {
        format!("the data has {} bytes, but one block has {block}; give more data", corpus.len())
    })?;
    let losses = |window| loss_by_position(&model, window, corpus.bytes(), &edges);
    let lines: Vec<Line> = losses(Window::Default)?
        .into_iter()
        .zip(losses(Window::None)?)
        .map(|(PositionLoss { start, end, bytes, loss }, without)| Line {
            start,
            end,
            bytes,
            loss,
            loss_without_window: without.loss,
        })
        .collect();
    if args.output == Output::Json {
        return print_json(&lines);
    }
    print(&match model.trained_block() {
        Some(block) => format!("trained on blocks of {block}; streams of {longest} bytes; nats per byte\n"),
        None => format!(
            "the checkpoint records no block, so there is no window; streams of {longest} bytes; nats per \
             byte\n"
        ),
    })?;
    print(&format!("{:<16} {:>10} {:>14} {:>14}", "positions", "bytes", "window", "no window"))?;
    for Line { start, end, bytes, loss, loss_without_window } in lines {
        let positions = format!("{start}..{end}");
        print(&format!("{positions:<16} {bytes:>10} {loss:>14.4} {loss_without_window:>14.4}"))?;
    }
    Ok(())
}
