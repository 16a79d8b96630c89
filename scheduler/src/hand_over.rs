//! Which attempt is to hand its device over next: because its node is drained or its owner needs it, because a job of higher priority needs the
//! device, or because the job would end much sooner elsewhere.

use std::collections::BTreeMap;

use hatchery_common::{id::JobId, node::NodeMode};

use crate::{
    cluster::{HandOver, Job, JobPhase},
    draft::{Draft, Leased},
    observed::ObservedNode,
    placement::Placement,
    slot::{HAND_OVER_SECS, Needs, Reach, Slot},
    urgency,
};

/// A job pushes off only one whose priority is lower by at least this, with and without what age adds to both.
const PREEMPT_POINTS_MIN: u8 = 10;
/// And that has run for so long: who has just begun was the better choice a moment ago.
const PREEMPT_AFTER_SECS: f64 = 10.0;
/// It must gain so many seconds by that, and so much of what it would need otherwise.
const PREEMPT_GAIN_SECS_MIN: f64 = 60.0;
const PREEMPT_GAIN_SHARE_MIN: f64 = 0.2;
/// A job moves only if it ends sooner by so many seconds, and by so much of what it would need where it is, the costs of
/// moving included.
const MIGRATE_GAIN_SECS_MIN: f64 = 60.0;
const MIGRATE_GAIN_SHARE_MIN: f64 = 0.25;
/// And only when its attempt has run for so long, so that its speed is known and moves do not follow each other.
const MIGRATE_AFTER_SECS: f64 = 60.0;

/// The next attempt that is to hand over, if any.
pub(crate) fn next(draft: &Draft<'_>, placement: &Placement<'_>) -> Option<(JobId, HandOver)> {
    drained(draft)
        .or_else(|| overtaken(draft, placement))
        .or_else(|| preempted(draft, placement))
        .or_else(|| migrated(draft, placement))
}

/// The attempts that could be told to hand over, and their slots.
fn running<'a, 'p>(
    draft: &'p Draft<'a>,
    placement: &'p Placement<'a>,
) -> impl Iterator<Item = (Leased<'a, 'p>, usize, &'p Slot<'a>)> {
    let slots = placement.slots.iter().enumerate();
    let by_place: BTreeMap<_, _> =
        slots.map(|(index, slot)| ((slot.node.id, slot.device.device), (index, slot))).collect();
    steady(draft).filter_map(move |leased| {
        let (index, slot) = *by_place.get(&(leased.lease.node, leased.lease.device))?;
        Some((leased, index, slot))
    })
}

/// The leases whose attempts run and are to go on; not those that this very plan grants.
fn steady<'a, 'p>(draft: &'p Draft<'a>) -> impl Iterator<Item = Leased<'a, 'p>> {
    draft.leases().filter(|leased| leased.job.phase == JobPhase::Running && leased.hand_over.is_none())
}

fn drained(draft: &Draft<'_>) -> Option<(JobId, HandOver)> {
    let why = |leased: &Leased<'_, '_>| {
        let node = leased.lease.node;
        if draft.cluster.nodes.get(&node).is_some_and(|node| node.mode == NodeMode::Draining) {
            return Some(HandOver::Drain);
        }
        let away = draft.observed.nodes.get(&node)?.report.away?;
        Some(HandOver::NodeAway { reason: away.reason })
    };
    steady(draft).find_map(|leased| Some((leased.job.id, why(&leased)?)))
}

/// An attempt that is further behind than a checkpoint which came late, from a node that was cut off, so that going on from
/// there is the shorter way; or that has nothing left to do.
fn overtaken(draft: &Draft<'_>, placement: &Placement<'_>) -> Option<(JobId, HandOver)> {
    let shortens = |(leased, _, slot): &(Leased<'_, '_>, usize, &Slot<'_>)| {
        let job = leased.job;
        let newest = job.checkpoint.and_then(|id| draft.cluster.checkpoints.get(&id));
        let Some(late) = newest.filter(|newest| newest.late && leased.lease.resume_from != job.checkpoint)
        else {
            return false;
        };
        let begun = leased.lease.resume_from.and_then(|id| draft.cluster.checkpoints.get(&id));
        let begun = begun.map_or(job.start_step, |checkpoint| checkpoint.manifest.step);
        // A coordinator that has just started does not know how far an attempt is.
        let heard = draft.observed.nodes.get(&leased.lease.node).is_some_and(ObservedNode::has_reported);
        let done = leased.progress.map_or(begun, |progress| progress.step);
        let speed = draft.speeds.speeds(job).at(slot.node.id, slot.device);
        let gain = late.manifest.step.saturating_sub(done) as f64 * speed.secs_per_step;
        job.end_is_committed() || heard && gain > HAND_OVER_SECS + placement.move_secs(job)
    };
    let (leased, ..) = running(draft, placement).find(shortens)?;
    Some((leased.job.id, HandOver::Overtaken { step: leased.job.checkpoint_step }))
}

/// The attempt that the first waiting job of higher priority pushes off, where that gains it much.
fn preempted(draft: &Draft<'_>, placement: &Placement<'_>) -> Option<(JobId, HandOver)> {
    let now = draft.now.wall;
    let there = running(draft, placement).filter(|(leased, _, slot)| {
        slot.reach == Reach::Connected && leased.secs_held(now) >= PREEMPT_AFTER_SECS
    });
    let victims: Vec<(&Job, usize)> = there.map(|(leased, index, _)| (leased.job, index)).collect();
    let lowest = victims.iter().map(|(job, ..)| job.spec.queue.priority.get()).min()?;
    for (slot, line) in placement.lines.iter().enumerate() {
        let mut end_secs = placement.slots[slot].free_in_secs();
        for index in line {
            end_secs += placement.secs(*index, slot);
            let job = placement.jobs[*index];
            let priority = job.spec.queue.priority.get();
            if priority < lowest.saturating_add(PREEMPT_POINTS_MIN) {
                continue;
            }
            let lower = victims.iter().filter(|(victim, at)| {
                let gap = priority.saturating_sub(victim.spec.queue.priority.get());
                let aged = urgency::points(job, now).saturating_sub(urgency::points(victim, now));
                let end_there = HAND_OVER_SECS + placement.secs(*index, *at);
                let gain = end_secs - end_there;
                gap >= PREEMPT_POINTS_MIN
                    && aged >= PREEMPT_POINTS_MIN.into()
                    && gain >= PREEMPT_GAIN_SECS_MIN
                    && gain >= PREEMPT_GAIN_SHARE_MIN * end_secs
            });
            let key = |(victim, at): &&(&Job, usize)| {
                (victim.spec.queue.priority, placement.secs(*index, *at).to_bits(), victim.id)
            };
            if let Some((victim, _)) = lower.min_by_key(key) {
                return Some((victim.id, HandOver::Preempt { by: job.id }));
            }
        }
    }
    None
}

/// The attempt that gains most by moving to a device which nobody waits for.
fn migrated(draft: &Draft<'_>, placement: &Placement<'_>) -> Option<(JobId, HandOver)> {
    let idle = |(index, slot): &(usize, &Slot<'_>)| slot.is_free() && placement.lines[*index].is_empty();
    let idle: Vec<&Slot<'_>> =
        placement.slots.iter().enumerate().filter(idle).map(|(_, slot)| slot).collect();
    if idle.is_empty() {
        return None;
    }
    let mut best: Option<(f64, JobId, HandOver)> = None;
    for (leased, _, slot) in running(draft, placement) {
        let (job, Some(left)) = (leased.job, slot.attempt) else { continue };
        if draft.now.wall.since(leased.lease.granted_at).as_secs_f64() < MIGRATE_AFTER_SECS || !left.measured
        {
            continue;
        }
        let (speeds, needs) = (draft.speeds.speeds(job), Needs::of(job));
        let steps = leased.steps_left() as f64;
        for to in idle.iter().filter(|to| to.unfit(&needs).is_none()) {
            let failed_there = job.failures.iter().any(|failure| failure.node == to.node.id);
            let speed = speeds.at(to.node.id, to.device);
            let gain = left.secs - HAND_OVER_SECS - placement.move_secs(job) - steps * speed.secs_per_step;
            let enough = gain >= MIGRATE_GAIN_SECS_MIN && gain >= MIGRATE_GAIN_SHARE_MIN * left.secs;
            if enough
                && speed.is_measured()
                && !failed_there
                && best.as_ref().is_none_or(|best| gain > best.0)
            {
                let (node, device) = (to.node.id, to.device.device);
                best = Some((gain, job.id, HandOver::Migrate { to: node, device, sooner_secs: gain as u64 }));
            }
        }
    }
    best.map(|(_, job, why)| (job, why))
}
