//! `watch`: a job as it goes. In a terminal one bar that redraws, with lines above it for what happened; in a pipe
//! plain lines; as JSON one job view on each line.

use std::{
    collections::BTreeMap,
    pin::pin,
    time::{Duration, Instant},
};

use futures::StreamExt;
use hatchery_common::{
    id::CheckpointId,
    job::JobPhase,
    view::{CheckpointView, JobView},
};
use hatchery_proto::client::FleetClient;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    checkpoints::{is_everywhere, is_settled, places},
    jobs::{train_loss, validation_loss},
};
use crate::{
    args::JobArgs,
    exit::{Code, Failure, Outcome},
    home::Home,
    human,
    output::{self, Output, is_interactive},
};

/// How often the replicas are looked at.
const REPLICAS_EVERY: Duration = Duration::from_millis(500);
/// How often a pipe gets a line of progress.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// How long to wait, after the job has completed, for its last checkpoint to be on every node.
const REPLICAS_WAIT_MAX: Duration = Duration::from_secs(30);
/// How often a broken connection is tried again before giving up.
const RECONNECTS_MAX: u32 = 60;

/// `hatchery watch`.
pub(crate) async fn watch_named(args: JobArgs, home: &Home, output: Output) -> Outcome {
    let fleet = home.fleet().await?;
    // `latest` is one job from now on, whatever else is submitted meanwhile.
    let job = fleet.job(&args.job).await?;
    watch(&fleet, &job.id.to_string(), output).await
}

/// Follows `job` until it has ended; succeeds if it completed.
pub(crate) async fn watch(fleet: &FleetClient, job: &str, output: Output) -> Outcome {
    let mut screen = Screen::new(output);
    let outcome = tokio::select! {
        outcome = follow(fleet, job, &mut screen) => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(
            Code::Interrupted,
            format!("the job continues; follow it with `hatchery watch {}`, stop it with `hatchery cancel`", &job[..8]),
        )),
    };
    screen.bar.finish_and_clear();
    let view = outcome?;
    if view.phase == JobPhase::Completed {
        return Ok(());
    }
    let why = view.why.map_or_else(String::new, |why| format!(": {why}"));
    Err(Failure::failed(format!("job {} {}{why}", view.id.short(), view.phase)))
}

async fn follow(fleet: &FleetClient, job: &str, screen: &mut Screen) -> Result<JobView, Failure> {
    let mut reconnects = 0;
    loop {
        match follow_once(fleet, job, screen, &mut reconnects).await {
            Err(failure) if failure.code == Code::Unreachable && reconnects < RECONNECTS_MAX => {
                if reconnects == 0 {
                    screen.say("the coordinator does not answer; the job continues; retrying");
                }
                reconnects += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            other => return other,
        }
    }
}

async fn follow_once(
    fleet: &FleetClient,
    job: &str,
    screen: &mut Screen,
    reconnects: &mut u32,
) -> Result<JobView, Failure> {
    let mut updates = pin!(fleet.watch_job(job).await?);
    let mut replicas = tokio::time::interval(REPLICAS_EVERY);
    let mut ended: Option<(JobView, Instant)> = None;
    loop {
        tokio::select! {
            update = updates.next(), if ended.is_none() => match update {
                Some(view) => {
                    let view = view?;
                    *reconnects = 0;
                    screen.show(&view)?;
                    if view.phase.is_terminal() {
                        ended = Some((view, Instant::now()));
                    }
                }
                None => return Err(Failure::new(Code::Unreachable, "the connection to the coordinator was lost")),
            },
            _ = replicas.tick() => {
                let checkpoints = fleet.checkpoints(Some(job)).await?;
                screen.show_replicas(&checkpoints);
                if let Some((view, since)) = &ended {
                    let newest = checkpoints.iter().max_by_key(|checkpoint| checkpoint.manifest.step);
                    let nodes = fleet.nodes().await?;
                    let settled = newest.is_none_or(|newest| is_settled(newest, &nodes));
                    if settled || view.phase != JobPhase::Completed || since.elapsed() > REPLICAS_WAIT_MAX {
                        return Ok(view.clone());
                    }
                }
            }
        }
    }
}

/// What has been shown so far.
struct Screen {
    output: Output,
    bar: ProgressBar,
    phase: Option<JobPhase>,
    why: Option<String>,
    place: Option<String>,
    validated_step: u64,
    checkpoint: Option<CheckpointId>,
    replicas: BTreeMap<CheckpointId, String>,
    last_line: Option<Instant>,
    last_step: u64,
}

impl Screen {
    fn new(output: Output) -> Self {
        let bar = if output == Output::Text && is_interactive() {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        } else {
            ProgressBar::hidden()
        };
        Self {
            output,
            bar,
            phase: None,
            why: None,
            place: None,
            validated_step: 0,
            checkpoint: None,
            replicas: BTreeMap::new(),
            last_line: None,
            last_step: 0,
        }
    }

    /// A line for people, above the bar if there is one.
    fn say(&self, text: &str) {
        match self.output {
            Output::Json => {}
            Output::Text if self.bar.is_hidden() => {
                // A closed pipe ends the command inside `line`.
                let _ = output::line(text);
            }
            Output::Text => self.bar.println(text),
        }
    }

    fn show(&mut self, view: &JobView) -> Outcome {
        if self.output == Output::Json {
            return self.output.print_line(view, |_| String::new());
        }
        let place = view
            .node
            .as_ref()
            .zip(view.device)
            .map(|(node, device)| format!("attempt {}: {device} of {node}", view.epoch));
        if view.phase == JobPhase::Running && place != self.place {
            let from = if view.checkpoint_step > 0 {
                format!(", resuming from step {}", view.checkpoint_step)
            } else {
                String::new()
            };
            self.say(&format!("{}{from}", place.as_deref().unwrap_or("running")));
            self.place = place;
        }
        if !view.phase.is_terminal() {
            self.show_phase(view);
        }
        if let Some(validation) = &view.validation
            && validation.step > self.validated_step
        {
            self.say(&format!(
                "step {}: validation loss {}",
                validation.step,
                human::loss_and_bits(Some(validation.loss))
            ));
            self.validated_step = validation.step;
        }
        if view.checkpoint != self.checkpoint {
            if let Some(checkpoint) = view.checkpoint {
                self.say(&format!(
                    "step {}: checkpoint {} committed",
                    view.checkpoint_step,
                    checkpoint.short()
                ));
            }
            self.checkpoint = view.checkpoint;
        }
        self.show_progress(view);
        // How it ended is the last that is said of it.
        self.show_phase(view);
        Ok(())
    }

    fn show_phase(&mut self, view: &JobView) {
        let moved = self.phase.as_ref() != Some(&view.phase) && view.phase != JobPhase::Running;
        if moved || view.why != self.why && view.why.is_some() {
            let early = view.why.as_ref().map_or_else(String::new, |why| format!("; ended early: {why}"));
            let more = if view.phase == JobPhase::Completed {
                Some(result(view) + &early)
            } else {
                view.why.clone()
            };
            let more = more.map_or_else(String::new, |more| format!(": {more}"));
            self.say(&format!("{}{more}", view.phase));
        }
        self.phase = Some(view.phase.clone());
        self.why.clone_from(&view.why);
    }

    fn show_progress(&mut self, view: &JobView) {
        let steps = view.spec.train.raw().steps;
        let Some(progress) = view.progress.filter(|progress| progress.step > 0) else {
            if let Some(activity) = &view.activity {
                self.bar.set_length(steps);
                self.bar.set_message(activity.clone());
            }
            return;
        };
        let remaining = steps.saturating_sub(progress.step) as f64 / progress.steps_per_sec.max(1e-9);
        let eta = human::duration(Duration::from_secs_f64(remaining.min(1e9)));
        let validation = validation_loss(view).map_or_else(String::new, |loss| format!("  val {loss:.3}"));
        let slowed = progress.gpu.and_then(|gpu| gpu.slowed_by);
        let slowed = slowed.map_or_else(String::new, |by| format!("  slowed by {}", by.in_words()));
        let message = format!(
            "loss {} ({} bits per byte){validation}  {} steps/s  ETA {eta}{slowed}",
            human::loss(train_loss(view)),
            human::bits_per_byte(train_loss(view)),
            human::speed(progress.steps_per_sec)
        );
        self.bar.set_length(steps);
        self.bar.set_position(progress.step);
        self.bar.set_message(message.clone());
        let due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) || view.phase.is_terminal();
        if self.bar.is_hidden() && due && progress.step != self.last_step {
            self.say(&format!("step {}/{steps}  {message}", progress.step));
            self.last_line = Some(Instant::now());
            self.last_step = progress.step;
        }
    }

    fn show_replicas(&mut self, checkpoints: &[CheckpointView]) {
        let mut lines = Vec::new();
        for checkpoint in checkpoints.iter().filter(|checkpoint| !checkpoint.replicas.is_empty()) {
            let ready = format!("step {}: checkpoint on {}", checkpoint.manifest.step, places(checkpoint));
            let known = self.replicas.get(&checkpoint.id);
            // Only what is whole is worth a line: transfers under way change with every look.
            if is_everywhere(checkpoint) && known != Some(&ready) {
                lines.push((checkpoint.manifest.step, ready.clone()));
                self.replicas.insert(checkpoint.id, ready);
            }
        }
        lines.sort();
        for (_, line) in lines {
            self.say(&line);
        }
    }
}

/// What a completed job came to: `loss 5.562 -> 1.012, validation 1.180 (1.702 bits per byte), 180 steps in 3 min 20 s`.
fn result(view: &JobView) -> String {
    let took = view.started_at.zip(view.ended_at).map(|(started, ended)| ended.since(started));
    let took = took.map_or_else(String::new, |took| format!(" in {}", human::duration(took)));
    format!(
        "loss {} -> {}, validation {}, {} steps{took}",
        human::loss(view.metrics.first_loss),
        human::loss(train_loss(view)),
        human::loss_and_bits(validation_loss(view)),
        view.checkpoint_step
    )
}
