//! The plan: leases that ran out end, waiting jobs get devices, attempts hand theirs over where that is better, and every
//! job that still waits gets a reason.

use std::{borrow::Cow, collections::BTreeMap};

use hatchery_common::{
    device::Device,
    id::{Epoch, JobId, Name, NodeId},
    time::{BootTime, Timestamp},
};

use crate::{
    cluster::{Cluster, HandOver, Job, JobPhase},
    draft::Draft,
    ending,
    event::{Event, LeaseEnd, What},
    hand_over,
    observed::{InLine, Now, Observed},
    placement::Placement,
    speed::{self, SpeedBook, duration},
    wait::{Because, Wait},
};

/// What is to change now, what waits and why, and when to look again if nothing is heard until then.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be committed, in this order and together.
    pub events: Vec<Event>,
    /// A reason for every job that stays in the queue.
    pub waits: BTreeMap<JobId, Wait>,
    /// The jobs that wait for each device, in their order.
    pub queues: BTreeMap<(NodeId, Device), Vec<InLine>>,
    /// The next time at which a plan may differ although nothing was heard.
    pub wake_at: Option<BootTime>,
}

impl Plan {
    fn wake_by(&mut self, at: BootTime) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }
}

/// Plans. Pure, and at rest after one step: planning again at once gives the same reasons and no changes.
pub fn plan(cluster: &Cluster, observed: &Observed, now: Now) -> Plan {
    made(cluster, observed, now).0
}

/// The plan and what it rests on.
pub(crate) fn made<'a>(
    cluster: &'a Cluster,
    observed: &'a Observed,
    now: Now,
) -> (Plan, Draft<'a>, Placement<'a>) {
    let mut plan = Plan::default();
    let mut draft = begin(cluster, observed, now, &mut plan);
    let placement = loop {
        // What one job gets changes what the others see, those before it too: look again until nothing more changes.
        draft.hold_back(&mut plan.waits);
        let placement = Placement::of(&draft);
        let grants = placement.grants();
        if !grants.is_empty() {
            draft.intended = Cow::Owned(queues(&placement));
            for (job, lease) in grants.into_iter().map(|(job, lease)| (placement.jobs[job], lease)) {
                if draft.is_at_limit(&job.submitter) {
                    continue;
                }
                let (id, epoch) = (job.id, job.epoch.next());
                plan.events
                    .push(What::LeaseGranted { job: id, epoch, lease: lease.clone() }.at(lease.granted_at));
                draft.granted.push((job, lease));
                draft.queue.retain(|queued| queued.id != id);
            }
            continue;
        }
        let Some((job, why)) = hand_over::next(&draft, &placement) else { break placement };
        plan.events.push(What::HandOverRequested { job, why: why.clone() }.at(now.wall));
        draft.handed_over.insert(job, why);
    };
    plan.waits.extend(placement.waits().into_iter().map(|(job, wait)| (job.id, wait)));
    plan.queues = queues(&placement);
    if !plan.waits.is_empty() {
        // A silent node is out of reach when its term is over, and then another device may be the best.
        let terms = cluster.nodes.keys().map(|node| observed.lease_until(*node));
        terms.filter(|until| now.boot < *until).for_each(|until| plan.wake_by(until));
    }
    (plan, draft, placement)
}

/// Ends what has ended by itself, and gathers what is left.
fn begin<'a>(cluster: &'a Cluster, observed: &'a Observed, now: Now, plan: &mut Plan) -> Draft<'a> {
    let mut measured = Cow::Borrowed(&cluster.speeds);
    for event in speed::due(cluster, observed, now) {
        if let What::SpeedMeasured { key, speed } = &event.what {
            measured.to_mut().insert(*key, *speed);
        }
        plan.events.push(event);
    }
    let (mut queue, kept) = end_expired_leases(cluster, observed, now, plan);
    let phases = end_doomed(cluster, &mut queue, now, plan);
    queue.retain(|job| {
        match backing_off(cluster, job, now, plan)
            .or_else(|| may_run_still(observed, job, now, plan))
            .or_else(|| comes_after(job, &phases))
        {
            None => true,
            Some(wait) => {
                plan.waits.insert(job.id, wait);
                false
            }
        }
    });
    queue.sort_by_key(|job| (job.submitted_at, job.id));
    let open = cluster.jobs.values().filter(|job| !job.phase.is_terminal());
    let speeds = SpeedBook::of(cluster, &measured, open);
    Draft {
        cluster,
        observed,
        now,
        speeds,
        queue,
        kept,
        granted: Vec::new(),
        handed_over: BTreeMap::new(),
        intended: Cow::Borrowed(&observed.intended),
    }
}

/// Ends the leases whose node was not heard from for their term; the jobs that wait for a device then, and those that
/// have one still.
fn end_expired_leases<'a>(
    cluster: &'a Cluster,
    observed: &Observed,
    now: Now,
    plan: &mut Plan,
) -> (Vec<&'a Job>, Vec<&'a Job>) {
    let (mut queue, mut kept) = (Vec::new(), Vec::new());
    for job in cluster.jobs.values() {
        let Some(lease) = &job.lease else {
            if job.phase == JobPhase::Queued {
                queue.push(job);
            }
            continue;
        };
        let until = observed.lease_until(lease.node);
        if now.boot < until {
            plan.wake_by(until);
            kept.push(job);
            continue;
        }
        let end = ending::interrupted(job, LeaseEnd::NodeLost, None, now.wall);
        let pauses = matches!(job.hand_over, Some(HandOver::Pause { .. }));
        if matches!(end.what, What::LeaseEnded { .. }) && !pauses {
            queue.push(job);
        }
        plan.events.push(end);
    }
    (queue, kept)
}

/// The phases of the jobs, those that this plan has ended included.
struct Phases<'a> {
    cluster: &'a Cluster,
    ended: BTreeMap<JobId, JobPhase>,
}

impl<'a> Phases<'a> {
    /// The jobs that `job` comes after.
    fn before<'s>(&'s self, job: &'s Job) -> impl Iterator<Item = (&'a Job, &'s JobPhase)> {
        let jobs = job.spec.queue.after.iter().filter_map(|id| self.cluster.jobs.get(id));
        jobs.map(|job| (job, self.ended.get(&job.id).unwrap_or(&job.phase)))
    }
}

/// Ends the jobs that come after one which will never complete, and those that come after them.
fn end_doomed<'a>(cluster: &'a Cluster, queue: &mut Vec<&Job>, now: Now, plan: &mut Plan) -> Phases<'a> {
    let ended = plan.events.iter().filter_map(|event| match &event.what {
        What::JobEnded { job, phase, .. } => Some((*job, phase.clone())),
        _ => None,
    });
    let mut phases = Phases { cluster, ended: ended.collect() };
    loop {
        let lost = queue.iter().find_map(|job| {
            let mut before = phases.before(job);
            let lost = before.find(|(_, phase)| phase.is_terminal() && **phase != JobPhase::Completed);
            lost.map(|(lost, phase)| (job.id, lost, phase.name()))
        });
        let Some((job, lost, phase)) = lost else { return phases };
        let why = format!("it was to start after {} ({}), which is {phase}", lost.spec.name, lost.id.short());
        let phase = JobPhase::Failed { why };
        plan.events.push(What::JobEnded { job, phase: phase.clone() }.at(now.wall));
        phases.ended.insert(job, phase);
        queue.retain(|queued| queued.id != job);
    }
}

fn comes_after(job: &Job, phases: &Phases<'_>) -> Option<Wait> {
    let open = phases.before(job).filter(|(_, phase)| !phase.is_terminal());
    let jobs: Vec<Name> = open.map(|(job, _)| job.spec.name.clone()).collect();
    (!jobs.is_empty()).then_some(Wait::After { jobs })
}

/// Whether a job of a restored fleet may run still, under a lease that was granted after the backup: its node learns better
/// only when it hears from this coordinator, and stops by itself when it has heard nothing for a term.
fn may_run_still(observed: &Observed, job: &Job, now: Now, plan: &mut Plan) -> Option<Wait> {
    let is_restored = job.epoch > Epoch(0) && job.holders.last().is_none_or(|last| last.epoch != job.epoch);
    let until = observed.started_at + observed.lease;
    if !is_restored || now.boot >= until {
        return None;
    }
    plan.wake_by(until);
    Some(Wait::BackingOff { about: until.since(now.boot), because: None })
}

fn backing_off(cluster: &Cluster, job: &Job, now: Now, plan: &mut Plan) -> Option<Wait> {
    let until: Timestamp = job.not_before.filter(|until| now.wall < *until)?;
    let about = until.since(now.wall);
    plan.wake_by(now.boot + about);
    let because = job.failures.last().map(|failure| Because {
        cause: failure.cause,
        epoch: failure.epoch,
        node: cluster.nodes.get(&failure.node).map(|node| node.name.clone()),
    });
    Some(Wait::BackingOff { about, because })
}

fn queues(placement: &Placement<'_>) -> BTreeMap<(NodeId, Device), Vec<InLine>> {
    let mut queues = BTreeMap::new();
    for (index, slot) in placement.slots.iter().enumerate() {
        let line = &placement.lines[index];
        if line.is_empty() {
            continue;
        }
        let mut at_secs = slot.free_in_secs();
        let in_line = line.iter().map(|job| {
            let start_in = duration(at_secs);
            at_secs += placement.secs(*job, index);
            InLine { job: placement.jobs[*job].id, start_in, end_in: duration(at_secs) }
        });
        queues.insert((slot.node.id, slot.device.device), in_line.collect());
    }
    queues
}
