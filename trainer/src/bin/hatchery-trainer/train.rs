//! `hatchery-trainer train`, for the agent and by hand.

use std::{
    fs,
    io::{self, BufReader},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, ensure};
use hatchery_common::{
    recipe::{DataSpec, Recipe, RecipeError},
    trainer::{AttemptOrder, Ending},
};
use hatchery_trainer::{
    checkpoint::{read_cursor, read_model},
    control::Control,
    failure::Failure,
    ffi,
    report::{JsonLines, Reporter, Text, WithLog},
    run::{Task, run},
};

use crate::{
    FAILED,
    args::{Output, Train},
};

/// Exit code of a recipe that is wrong, as of a wrong command line.
const USAGE: u8 = 2;
const ORDER_BYTES_MAX: u64 = 1 << 20;
/// Between two lines of progress in a terminal.
const SHOW_EVERY: Duration = Duration::from_secs(2);
/// Between two lines of progress in an attempt's log, which may be days long.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Trains; the exit code says how it ended.
pub(crate) fn train(args: Train) -> anyhow::Result<ExitCode> {
    ffi::watch_signals();
    match &args.attempt {
        Some(order) => Ok(exit_code(&run_order(order))),
        None => by_hand(args),
    }
}

fn run_order(path: &Path) -> Ending {
    let order = read_order(path);
    let control = Control::new(order.as_ref().ok().and_then(|order| order.lease_until));
    control.listen(BufReader::new(io::stdin()));
    let steps = order.as_ref().map_or(0, |order| order.train.raw().steps);
    let mut reporter =
        WithLog { events: JsonLines(io::stdout()), log: Text::new(io::stderr(), steps, LOG_EVERY) };
    run(order.and_then(Task::from_order), &control, &mut reporter)
}

fn read_order(path: &Path) -> Result<AttemptOrder, Failure> {
    let wrong = |problem: String| Failure::bad_input(format!("the order {}: {problem}", path.display()));
    let bytes =
        hatchery_common::durable::read_limited(path, ORDER_BYTES_MAX).map_err(|e| wrong(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
}

fn by_hand(args: Train) -> anyhow::Result<ExitCode> {
    let recipe = match recipe(&args)? {
        Ok(recipe) => recipe,
        Err(error) => {
            eprintln!("hatchery-trainer: {error}");
            return Ok(ExitCode::from(USAGE));
        }
    };
    let out = args.out.context("--out is missing")?;
    if args.resume.is_none() {
        refuse_old_checkpoints(&out)?;
    }
    let data = DataSpec {
        paths: if args.data.is_empty() { recipe.data.paths.clone() } else { args.data },
        include: if args.include.is_empty() { recipe.data.include.clone() } else { args.include },
    };
    let steps = recipe.train.raw().steps;
    let task = Task {
        corpus: crate::corpus(&data)?,
        model: recipe.model,
        train: recipe.train,
        device: args.device.wanted(),
        threads: args.threads,
        checkpoints: out,
        resume_from: args.resume,
        fine_tune_from: args.fine_tune,
    };
    let mut reporter: Box<dyn Reporter> = match args.output {
        Output::Json => Box::new(JsonLines(io::stdout())),
        Output::Text => Box::new(Text::new(io::stderr(), steps, SHOW_EVERY)),
    };
    Ok(exit_code(&run(Ok(task), &Control::new(None), reporter.as_mut())))
}

/// The recipe of the command line, or of the checkpoint to go on from; the inner error is a wrong recipe.
fn recipe(args: &Train) -> anyhow::Result<Result<Recipe, RecipeError>> {
    let text = match &args.recipe {
        Some(file) => {
            fs::read_to_string(file).with_context(|| format!("cannot read the recipe {}", file.display()))?
        }
        None => String::new(),
    };
    let text = match (&args.resume, &args.fine_tune) {
        (Some(folder), _) => {
            let (model, train) = (read_model(folder)?.config, read_cursor(folder)?.train);
            Recipe::text_like(&text, &model, Some(&train))
        }
        (None, Some(folder)) => Recipe::text_like(&text, &read_model(folder)?.config, None),
        (None, None) => Ok(text),
    };
    Ok(text.and_then(|text| Recipe::parse(args.preset.as_deref(), &text, &args.set)))
}

/// A fresh run would replace an older one's checkpoints one by one.
fn refuse_old_checkpoints(out: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(out) else { return Ok(()) };
    let is_checkpoint = |name: &str| name.starts_with("step-");
    let old = entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(is_checkpoint));
    ensure!(
        !old,
        "{} holds checkpoints of another run; choose another --out, or resume one of them with --resume",
        out.display()
    );
    Ok(())
}

fn exit_code(ending: &Ending) -> ExitCode {
    match ending {
        Ending::Completed | Ending::Stopped | Ending::LeaseExpired | Ending::NodeAway => ExitCode::SUCCESS,
        Ending::Failed { .. } => ExitCode::from(FAILED),
    }
}
