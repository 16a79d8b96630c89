//! `jobs`, `job`.

use futures::StreamExt;
use hatchery_common::{
    id::Name,
    recipe::{StartFrom, StartHow},
    trainer::{PositionLoss, Validation},
    view::JobView,
};

use hatchery_proto::client::FleetClient;

use super::placement;
use crate::{
    args::{JobsArgs, OneJobArgs},
    exit::{Code, Failure, Outcome},
    home::Home,
    human,
    output::{Output, facts, table},
};

/// `hatchery jobs`.
pub(crate) async fn list(args: JobsArgs, home: &Home, output: Output) -> Outcome {
    if let Some(group) = &args.group {
        return list_group(&home.fleet().await?, group, args.wait, output).await;
    }
    let jobs = home.fleet().await?.jobs(!args.active).await?;
    output.print(&jobs, |jobs| {
        let headings = [
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
        ];
        let wide = if args.wide { &WIDE[..] } else { &[] };
        let headings: Vec<&str> = headings.into_iter().chain(wide.iter().map(|column| column.0)).collect();
        table(
            &headings,
            jobs.iter().map(|job| {
                let mut cells = vec![
                    job.id.short(),
                    job.spec.name.to_string(),
                    job.phase.to_string(),
                    job.node.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                    job.device.map_or_else(|| "-".to_owned(), |device| device.to_string()),
                    steps(job),
                    human::loss(train_loss(job)),
                    human::bits_per_byte(train_loss(job)),
                    job.progress
                        .map_or_else(|| "-".to_owned(), |progress| human::speed(progress.steps_per_sec)),
                    human::ago(job.submitted_at),
                ];
                cells.extend(wide.iter().map(|(_, cell)| cell(job).unwrap_or_else(|| "-".to_owned())));
                cells
            }),
        ) + &unread(jobs)
    })
}

/// A column with its heading.
type Column = (&'static str, fn(&JobView) -> Option<String>);

/// The columns that `--wide` adds.
const WIDE: [Column; 3] = [
    ("submitter", |job| Some(job.submitter.to_string())),
    ("group", |job| job.spec.queue.group.as_ref().map(ToString::to_string)),
    ("note", |job| job.spec.note.as_ref().map(|note| note.as_str().to_owned())),
];

/// Why jobs are not shown whole, a line for each reason.
fn unread(jobs: &[JobView]) -> String {
    let lines = jobs.iter().flat_map(|job| {
        job.unread.iter().map(|why| format!("\njob {} is not shown whole: {why}", job.id.short()))
    });
    lines.collect()
}

/// `hatchery job`.
pub(crate) async fn show(args: OneJobArgs, home: &Home, output: Output) -> Outcome {
    let fleet = home.fleet().await?;
    if args.why {
        return output.print(&fleet.placement(&args.job).await?, placement::show);
    }
    if let Some(priority) = args.priority {
        let job = fleet.set_priority(&args.job, priority).await?;
        return output.print(&job, |job| format!("job {} has priority {}", job.id.short(), priority.get()));
    }
    output.print(&fleet.job(&args.job).await?, describe)
}

/// The jobs of a group, the best validation loss first.
pub(crate) async fn of_group(fleet: &FleetClient, group: &Name) -> Result<Vec<JobView>, Failure> {
    let mut jobs = fleet.jobs(true).await?;
    jobs.retain(|job| job.spec.queue.group.as_ref() == Some(group));
    if jobs.is_empty() {
        return Err(Failure::new(Code::NotFound, format!("no job is in group {group}")));
    }
    let rank = |job: &JobView| best_validation(job).unwrap_or(f64::INFINITY);
    jobs.sort_by(|a, b| rank(a).total_cmp(&rank(b)).then(a.submitted_at.cmp(&b.submitted_at)));
    Ok(jobs)
}

/// The best validation loss that is known.
fn best_validation(job: &JobView) -> Option<f64> {
    job.metrics.best.map(|best| best.loss).or(validation_loss(job))
}

/// `hatchery jobs --group`: ranked; with `--wait` until all have ended, telling each end as it comes.
pub(crate) async fn list_group(fleet: &FleetClient, group: &Name, wait: bool, output: Output) -> Outcome {
    if wait {
        for job in of_group(fleet, group).await?.iter().filter(|job| !job.phase.is_terminal()) {
            let mut states = fleet.watch_job(&job.id.to_string()).await?;
            let mut last = None;
            while let Some(state) = states.next().await {
                last = Some(state?);
            }
            if let Some(ended) = last.filter(|_| output == Output::Text) {
                eprintln!("{} ({}) is {}", ended.spec.name, ended.id.short(), ended.phase);
            }
        }
    }
    output.print(&of_group(fleet, group).await?, |jobs| {
        let headings =
            ["rank", "job", "name", "phase", "node", "device", ">step", ">validation", ">bits/byte", ">loss"];
        table(
            &headings,
            jobs.iter().enumerate().map(|(index, job)| {
                let validation = best_validation(job);
                vec![
                    validation.map_or_else(|| "-".to_owned(), |_| (index + 1).to_string()),
                    job.id.short(),
                    job.spec.name.to_string(),
                    job.phase.to_string(),
                    job.node.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
                    job.device.map_or_else(|| "-".to_owned(), |device| device.to_string()),
                    steps(job),
                    human::loss(validation),
                    human::bits_per_byte(validation),
                    human::loss(train_loss(job)),
                ]
            }),
        )
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
        StartHow::Continue => "",
        StartHow::FineTune => "the weights of ",
    };
    format!("{share}checkpoint {}", start.checkpoint.short())
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
    let at = |node: &Option<Name>| {
        node.as_ref().map(|node| match job.device {
            Some(device) => format!("{device} of {node}, attempt {}", job.epoch),
            None => node.to_string(),
        })
    };
    let mut text = facts(&[
        ("job", Some(job.id.to_string())),
        ("name", Some(job.spec.name.to_string())),
        ("note", job.spec.note.as_ref().map(|note| note.as_str().to_owned())),
        ("phase", Some(job.phase.to_string())),
        ("why", job.why.clone()),
        ("activity", job.activity.clone()),
        ("placement", at(&job.node)),
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
        ("GPU", job.progress.and_then(|p| p.gpu).map(human::gpu).filter(|text| !text.is_empty())),
        ("checkpoint", job.checkpoint.map(|id| format!("{} at step {}", id.short(), job.checkpoint_step))),
        ("best", job.best.map(|id| format!("{}, also called {}:best", id.short(), job.spec.name))),
        (
            "model",
            Some(format!(
                "{} layers, width {}, {} heads, {} neurons per head: {} parameters",
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
                "batch {}, block {}, lr {}, weight decay {}, seed {}",
                train.batch, train.block, train.lr, train.weight_decay, train.seed
            )),
        ),
        ("priority", (!job.spec.queue.is_default()).then(|| job.spec.queue.priority.get().to_string())),
        ("group", job.spec.queue.group.as_ref().map(ToString::to_string)),
        ("deadline", job.spec.queue.deadline.map(|at| at.to_string())),
        ("starts from", job.spec.start_from.map(begins_with)),
        ("dataset", Some(job.spec.dataset.short())),
        ("submitted", Some(format!("{} by {}", job.submitted_at, job.submitter))),
        ("started", job.started_at.map(|at| at.to_string())),
        ("ended", job.ended_at.map(|at| at.to_string())),
        ("not shown", (!job.unread.is_empty()).then(|| job.unread.join("; "))),
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
