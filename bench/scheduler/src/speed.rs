//! How long one plan takes, of many jobs on many devices.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use hatchery_common::{
    id::{JobId, NodeId},
    trainer::{Ending, Progress},
};
use hatchery_scheduler::{Event, Job, JobPhase, What};
use serde::Serialize;

use crate::{
    cases::{Dice, TRIPLE_STEPS_PER_SEC},
    world::World,
};

/// One kind of plan, timed.
#[derive(Serialize)]
pub(crate) struct Timing {
    pub(crate) after: &'static str,
    /// Jobs in the queue, the median over the plans.
    pub(crate) queued: usize,
    /// Leases granted by one plan, the median.
    pub(crate) granted: usize,
    pub(crate) median_ms: f64,
    pub(crate) worst_ms: f64,
}

struct Timed {
    queued: usize,
    granted: usize,
    ms: f64,
}

/// `devices` in the ratio of the triple, each up to twice as fast or slow; lengths over three decades; a
/// quarter of the jobs with a wish.
pub(crate) fn measure(jobs: usize, devices: usize, repeats: usize) -> Result<Vec<Timing>> {
    let mut dice = Dice { seed: "speed".into(), drawn: 0 };
    let mut world = World::new()?;
    for (kind, steps_per_sec) in TRIPLE_STEPS_PER_SEC.into_iter().cycle().take(devices) {
        world.join(kind, steps_per_sec * dice.log_uniform((0.5, 2.0)))?;
    }
    for _ in 0..jobs {
        submit(&mut world, &mut dice)?;
    }
    let from_nothing = (0..repeats).map(|_| {
        world.observed.intended = Arc::default();
        time(&mut world).0
    });
    let from_nothing = from_nothing.collect();

    // All devices busy, an hour in, and the queue filled up again.
    apply_plan(&mut world);
    world.go_to(3_600_000);
    for (node, job) in running(&world) {
        hear_of(&mut world, node, job, &mut dice);
    }
    apply_plan(&mut world);
    while queued(&world) + repeats < jobs {
        submit(&mut world, &mut dice)?;
    }
    apply_plan(&mut world);

    let (mut submitted, mut ended, mut heard) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 0..repeats {
        submit(&mut world, &mut dice)?;
        submitted.push(plan(&mut world));
        let running = running(&world);
        let pick = |n: usize| running.get((repeat * 7919 + n) % running.len().max(1)).copied();
        let (_, job) = pick(1).context("no job runs")?;
        let steps = world.cluster.jobs[&job].spec.train.raw().steps;
        world.end(job, steps, Ending::Completed)?;
        ended.push(plan(&mut world));
        let (node, job) = pick(2).filter(|other| other.1 != job).context("only one job runs")?;
        hear_of(&mut world, node, job, &mut dice);
        heard.push(plan(&mut world));
    }
    Ok(vec![
        timing("nothing planned before", from_nothing),
        timing("a job submitted", submitted),
        timing("an attempt ended", ended),
        timing("a report heard", heard),
    ])
}

fn submit(world: &mut World, dice: &mut Dice) -> Result<()> {
    let steps = dice.log_uniform((100.0, 100_000.0)) as u64;
    let kind = TRIPLE_STEPS_PER_SEC[(dice.unit() * 3.0) as usize].0;
    let kinds = if dice.unit() < 0.25 { vec![kind] } else { Vec::new() };
    world.submit(steps, kinds).map(|_| ())
}

fn queued(world: &World) -> usize {
    world.cluster.jobs.values().filter(|job| job.phase == JobPhase::Queued).count()
}

fn running(world: &World) -> Vec<(NodeId, JobId)> {
    let running = |job: &Job| job.lease.as_ref().map(|lease| (lease.node, job.id));
    world.cluster.jobs.values().filter_map(running).collect()
}

/// The node says that its attempt is somewhere on its way.
fn hear_of(world: &mut World, node: NodeId, job: JobId, dice: &mut Dice) {
    let steps = world.cluster.jobs[&job].spec.train.raw().steps;
    let step = (dice.unit() * steps as f64) as u64;
    let progress = Progress { step, steps_per_sec: dice.log_uniform((0.2, 40.0)), ..Progress::default() };
    world.hear_of(node, Some((job, Some(progress))));
}

fn time(world: &mut World) -> (Timed, Vec<Event>) {
    let queued = queued(world);
    let start = Instant::now();
    let plan = world.plan();
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    let granted = plan.events.iter().filter(|event| matches!(&event.what, What::LeaseGranted { .. })).count();
    (Timed { queued, granted, ms }, plan.events)
}

/// Times one plan and applies it.
fn plan(world: &mut World) -> Timed {
    let (timed, events) = time(world);
    world.apply(&events);
    timed
}

fn apply_plan(world: &mut World) {
    let events = world.plan().events;
    world.apply(&events);
}

fn timing(after: &'static str, plans: Vec<Timed>) -> Timing {
    let middle = |mut counts: Vec<usize>| {
        counts.sort_unstable();
        counts[counts.len() / 2]
    };
    let mut times: Vec<f64> = plans.iter().map(|plan| plan.ms).collect();
    times.sort_unstable_by(f64::total_cmp);
    Timing {
        after,
        queued: middle(plans.iter().map(|plan| plan.queued).collect()),
        granted: middle(plans.iter().map(|plan| plan.granted).collect()),
        median_ms: times[times.len() / 2],
        worst_ms: times[times.len() - 1],
    }
}
