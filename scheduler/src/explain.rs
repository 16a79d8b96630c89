//! Why a job is where it is: every device of the fleet with what it would mean for the job.

use hatchery_common::{
    id::JobId,
    node::NodeMode,
    placement::{Candidate, Verdict},
};

use crate::{
    cluster::{Cluster, Job, Lease},
    draft::{Draft, Leased},
    observed::{Now, Observed},
    placement::{Placement, steps_left},
    plan::made,
    slot::{Needs, Reach, Slot, Unfit},
    speed::duration,
    wait::Rough,
};

/// Every device of the fleet as a place for `job`, the best first. Empty for a job that has ended or is not there.
pub fn explain(cluster: &Cluster, observed: &Observed, now: Now, job: JobId) -> Vec<Candidate> {
    let Some(job) = cluster.jobs.get(&job).filter(|job| !job.phase.is_terminal()) else { return Vec::new() };
    let (_, draft, placement) = made(cluster, observed, now);
    let mut candidates = candidates(job, &draft, &placement);
    let key = |candidate: &Candidate| {
        (candidate.end_in_ms.is_none(), candidate.end_in_ms, candidate.node_name.clone(), candidate.device)
    };
    candidates.sort_by_key(key);
    candidates
}

fn candidates(job: &Job, draft: &Draft<'_>, placement: &Placement<'_>) -> Vec<Candidate> {
    let (speeds, needs) = (draft.speeds.speeds(job), Needs::of(job));
    let leased = draft.leases().find(|leased| leased.job.id == job.id);
    let granted = draft.granted.iter().any(|(other, _)| other.id == job.id);
    let steps = leased.as_ref().map_or(steps_left(job), Leased::steps_left) as f64;
    let in_line = placement.jobs.iter().position(|other| other.id == job.id);
    let chosen = in_line.and_then(|index| placement.lines.iter().position(|line| line.contains(&index)));
    let ends = placement.slots.iter().enumerate().map(|(index, slot)| {
        let here = leased.as_ref().is_some_and(|leased| is_at(slot, leased.lease));
        let secs = speeds.at(slot.node.id, slot.device).secs_per_step * steps;
        let start_secs = if here { 0.0 } else { start_secs(placement, index, in_line) };
        let secs = if here { slot.attempt.map_or(secs, |left| left.secs) } else { secs };
        (here, start_secs, start_secs + in_line.map_or(secs, |job| placement.secs(job, index)))
    });
    let ends: Vec<(bool, f64, f64)> = ends.collect();
    let best = ends.iter().position(|(here, ..)| *here).or(chosen).map(|index| ends[index].2);
    let slots = placement.slots.iter().enumerate();
    let candidate = |(index, slot): (usize, &Slot<'_>)| {
        let speed = speeds.at(slot.node.id, slot.device);
        let (here, start_secs, end_secs) = ends[index];
        let (verdict, why) = match unusable(slot, &needs) {
            _ if here && !granted => (Verdict::Runs, "runs here".into()),
            Some(verdict) if !here => verdict,
            _ if here || chosen == Some(index) => (Verdict::Chosen, "chosen: it ends earliest here".into()),
            _ if best.is_none() => (Verdict::Possible, "possible once the job is in the queue".into()),
            _ => match best.map(|best| end_secs - best) {
                Some(later) if later >= 0.0 => {
                    (Verdict::EndsLater, format!("would end {} later", Rough(duration(later))))
                }
                _ => (Verdict::BetterForOthers, "assigned to jobs that gain more from it".into()),
            },
        };
        let possible = here || unusable(slot, &needs).is_none();
        Candidate {
            node: slot.node.id,
            node_name: slot.node.name.clone(),
            device: slot.device.device,
            steps_per_sec: 1.0 / speed.secs_per_step,
            known: speed.known,
            start_in_ms: possible.then(|| milliseconds(start_secs)),
            end_in_ms: possible.then(|| milliseconds(end_secs)),
            verdict,
            why,
        }
    };
    slots.map(candidate).collect()
}

fn milliseconds(secs: f64) -> u64 {
    duration(secs).as_millis() as u64
}

fn is_at(slot: &Slot<'_>, lease: &Lease) -> bool {
    (slot.node.id, slot.device.device) == (lease.node, lease.device)
}

/// When a job could start in a slot: at its own place in the line, else behind those that are in it.
fn start_secs(placement: &Placement<'_>, slot: usize, job: Option<usize>) -> f64 {
    let line = &placement.lines[slot];
    let before = line.iter().take_while(|other| Some(**other) != job);
    placement.slots[slot].free_in_secs() + before.map(|other| placement.secs(*other, slot)).sum::<f64>()
}

/// What keeps a job from a slot, if anything does.
fn unusable(slot: &Slot<'_>, needs: &Needs<'_>) -> Option<(Verdict, String)> {
    match slot.unfit(needs) {
        Some(Unfit::Unwished) => Some((Verdict::Unwished, "outside the job's wishes".into())),
        Some(Unfit::Excluded) => Some((Verdict::Excluded, "excluded".into())),
        Some(Unfit::Memory { least_bytes }) => {
            let least_mib = least_bytes.div_ceil(1 << 20);
            Some((Verdict::TooLittleMemory, format!("too little memory: it needs at least {least_mib} MiB")))
        }
        None if slot.reach == Reach::Lost => Some((Verdict::NotConnected, "not connected".into())),
        None if slot.node.mode != NodeMode::Open => Some((Verdict::Cordoned, "closed to new jobs".into())),
        None => match slot.reach {
            Reach::Away(away) => Some((Verdict::NodeAway, format!("away: {away}"))),
            _ => None,
        },
    }
}
