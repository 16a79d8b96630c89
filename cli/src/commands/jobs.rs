//! `jobs`, `job`, `cancel`.

use hatchery_common::{
    recipe::{StartFrom, StartHow},
    trainer::{PositionLoss, Validation},
    view::JobView,
};

use crate::{
    args::{JobArgs, JobsArgs},
    exit::Outcome,
    home::Home,
    human,
    output::{Output, facts, table},
};

/// `hatchery jobs`.
pub(crate) async fn list(args: JobsArgs, home: &Home, output: Output) -> Outcome {
    let jobs = home.fleet().await?.jobs(!args.active).await?;
    output.print(&jobs, |jobs| {
        table(
            &[
                "job",
                "name",
                "phase",
                "node",
                "device",
                ">step",
                ">loss",
                ">bits/byte",
                ">steps/s",
                "submitted",
            ],
            jobs.iter().map(|job| {
                vec![
                    job.id.short(),
                    job.spec.name.to_string(),
                    job.phase.clone(),
                    job.node.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                    job.device.map_or_else(|| "-".to_owned(), |device| device.to_string()),
                    steps(job),
                    human::loss(train_loss(job)),
                    human::bits_per_byte(train_loss(job)),
                    job.progress
                        .map_or_else(|| "-".to_owned(), |progress| human::speed(progress.steps_per_sec)),
                    human::ago(job.submitted_at),
                ]
            }),
        )
    })
}

/// `hatchery job`.
pub(crate) async fn show(args: JobArgs, home: &Home, output: Output) -> Outcome {
    let job = home.fleet().await?.job(&args.job).await?;
    output.print(&job, describe)
}

/// `hatchery cancel`.
pub(crate) async fn cancel(args: JobArgs, home: &Home, output: Output) -> Outcome {
    let job = home.fleet().await?.cancel(&args.job).await?;
    output.print(&job, |job| match job.phase.as_str() {
        "cancelling" => {
            format!("job {} writes a checkpoint and stops; see `hatchery watch {0}`", job.id.short())
        }
        phase => format!("job {} is {phase}", job.id.short()),
    })
}

/// Steps done of steps wanted.
pub(crate) fn steps(job: &JobView) -> String {
    let done = job.progress.map_or(0, |progress| progress.step).max(job.checkpoint_step);
    format!("{done}/{}", job.spec.train.raw().steps)
}

/// The newest training loss that is known.
pub(crate) fn train_loss(job: &JobView) -> Option<f64> {
    job.progress
        .filter(|progress| progress.step > 0)
        .map(|progress| progress.train_loss)
        .or(job.metrics.train_loss)
}

/// The newest validation loss that is known.
pub(crate) fn validation_loss(job: &JobView) -> Option<f64> {
    job.validation.as_ref().map(|validation| validation.loss).or(job.metrics.validation_loss)
}

fn begins_with(start: StartFrom) -> String {
    let share = match start.how {
        StartHow::Continue => "all",
        StartHow::FineTune => "the weights",
    };
    format!("{share} of checkpoint {}", start.checkpoint.short())
}

/// A validation's loss by position in the window: `1: 3.210, 2: 2.801, 3-4: 2.650`.
fn by_position(validation: &Validation) -> Option<String> {
    let range = |found: &PositionLoss| match found {
        PositionLoss { from, to, loss } if from == to => format!("{from}: {loss:.3}"),
        PositionLoss { from, to, loss } => format!("{from}-{to}: {loss:.3}"),
    };
    let ranges: Vec<_> = validation.by_position.iter().map(range).collect();
    (!ranges.is_empty()).then(|| ranges.join(", "))
}

fn describe(job: &JobView) -> String {
    let model = &job.spec.model;
    let train = job.spec.train.raw();
    let at = |node: &Option<hatchery_common::id::Name>| {
        node.as_ref().map(|node| match job.device {
            Some(device) => format!("{device} of {node}, attempt {}", job.epoch),
            None => node.to_string(),
        })
    };
    let mut text = facts(&[
        ("job", Some(job.id.to_string())),
        ("name", Some(job.spec.name.to_string())),
        ("phase", Some(job.phase.clone())),
        ("why", job.why.clone()),
        ("activity", job.activity.clone()),
        ("where", at(&job.node)),
        ("running on", job.running_on.clone()),
        ("steps", Some(steps(job))),
        (
            "first loss",
            job.metrics
                .first_loss
                .or(job.progress.and_then(|p| p.first_loss))
                .map(|l| human::loss_and_bits(Some(l))),
        ),
        ("train loss", train_loss(job).map(|loss| human::loss_and_bits(Some(loss)))),
        ("validation", validation_loss(job).map(|loss| human::loss_and_bits(Some(loss)))),
        ("by position", job.validation.as_ref().and_then(by_position)),
        ("speed", job.progress.map(|p| format!("{} steps/s", human::speed(p.steps_per_sec)))),
        ("memory", job.progress.filter(|p| p.memory_bytes > 0).map(|p| human::bytes(p.memory_bytes))),
        ("power", job.progress.and_then(|p| p.power_watts).map(|watts| format!("{watts:.0} W"))),
        ("checkpoint", job.checkpoint.map(|id| format!("{} at step {}", id.short(), job.checkpoint_step))),
        ("best", job.best.map(|id| format!("{}; {}:best names it", id.short(), job.spec.name))),
        (
            "model",
            Some(format!(
                "{} layers, width {}, {} heads, {} neurons each: {} parameters",
                model.layers(),
                model.width(),
                model.heads(),
                model.neurons_per_head(),
                model.parameters()
            )),
        ),
        (
            "recipe",
            Some(format!(
                "batch {}, block {}, lr {}, decay {}, seed {}",
                train.batch, train.block, train.lr, train.weight_decay, train.seed
            )),
        ),
        ("begins with", job.spec.start_from.map(begins_with)),
        ("dataset", Some(job.spec.dataset.short())),
        ("submitted", Some(format!("{} by {}", job.submitted_at, job.submitter))),
        ("started", job.started_at.map(|at| at.to_string())),
        ("ended", job.ended_at.map(|at| at.to_string())),
    ]);
    for failure in &job.failures {
        text += &format!(
            "\n\nattempt {} on {} of {} failed at {}: {:?}\n{}",
            failure.epoch,
            failure.device,
            failure.node,
            failure.at,
            failure.cause,
            failure.message.trim_end()
        );
    }
    text
}
