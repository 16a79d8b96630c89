//! `hatchery-trainer curve`: the losses of a run, as its checkpoint keeps them.

use std::collections::BTreeMap;

use hatchery_common::trainer::{LossPoint, bits};
use hatchery_trainer::checkpoint::read_cursor;
use serde::Serialize;

use crate::{
    args::{Curve, Output},
    print, print_json,
};

/// The losses after so many steps, in nats per byte.
#[derive(Debug, Default, Serialize)]
struct Line {
    step: u64,
    /// The mean of the training losses since the line before that has one.
    train_loss: Option<f64>,
    validation_loss: Option<f64>,
}

/// Prints the curve, a line for each step that has a figure.
pub(crate) fn curve(args: &Curve) -> anyhow::Result<()> {
    let curve = read_cursor(&args.checkpoint)?.curve;
    let mut lines: BTreeMap<u64, Line> = BTreeMap::new();
    let new = |step| Line { step, ..Line::default() };
    for LossPoint { step, loss } in curve.training {
        lines.entry(step).or_insert_with(|| new(step)).train_loss = Some(loss);
    }
    for LossPoint { step, loss } in curve.validation {
        lines.entry(step).or_insert_with(|| new(step)).validation_loss = Some(loss);
    }
    if args.output == Output::Json {
        return print_json(&lines.into_values().collect::<Vec<_>>());
    }
    let figure = |loss: Option<f64>| loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
    print("     step  train loss  bits per byte  validation  bits per byte")?;
    for Line { step, train_loss, validation_loss } in lines.values() {
        print(&format!(
            "{step:>9}  {:>10}  {:>13}  {:>10}  {:>13}",
            figure(*train_loss),
            figure(train_loss.map(bits)),
            figure(*validation_loss),
            figure(validation_loss.map(bits))
        ))?;
    }
    Ok(())
}
