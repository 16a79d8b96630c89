//! The plan: leases that ran out end, waiting jobs get devices, and every job that still waits gets a reason.

use std::collections::BTreeMap;

use hatchery_common::{
    id::JobId,
    time::{BootTime, Timestamp},
};

use crate::{
    change::{Change, LeaseEnd},
    cluster::{Cluster, Job, JobPhase},
    ending,
    observed::{Now, Observed},
    placement::Placement,
    wait::{Because, Wait},
};

/// What is to change now, what waits and why, and when to look again if nothing is heard until then.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To be committed, in this order and together.
    pub changes: Vec<Change>,
    /// A reason for every job that stays in the queue.
    pub waits: BTreeMap<JobId, Wait>,
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
    let mut plan = Plan::default();
    let mut queue = end_expired_leases(cluster, observed, now, &mut plan);
    queue.retain(|job| {
        let pause = backing_off(cluster, job, now, &mut plan);
        let ready = pause.is_none();
        plan.waits.extend(pause.map(|wait| (job.id, wait)));
        ready
    });
    queue.sort_by_key(|job| (job.submitted_at, job.id));
    // What one job gets changes what the others see, those before it too: look again until nothing more is granted.
    let mut placement = Placement::new(cluster, observed, now);
    loop {
        let mut waits = BTreeMap::new();
        let mut granted = Vec::new();
        for job in &queue {
            match placement.place(job) {
                Ok(lease) => granted.push((*job, lease)),
                Err(wait) => {
                    waits.insert(job.id, wait);
                }
            }
        }
        if granted.is_empty() {
            plan.waits.extend(waits);
            break;
        }
        queue.retain(|job| waits.contains_key(&job.id));
        placement.look_again(&granted);
        plan.changes.extend(granted.into_iter().map(|(job, lease)| Change::LeaseGranted {
            job: job.id,
            epoch: job.epoch.next(),
            lease,
        }));
    }
    if !plan.waits.is_empty() {
        // A silent node is out of reach when its term is over, and then another device may be the best.
        let terms = cluster.nodes.keys().map(|node| observed.lease_until(*node));
        terms.filter(|until| now.boot < *until).for_each(|until| plan.wake_by(until));
    }
    plan
}

/// Ends the leases whose node was not heard from for their term, and returns the jobs that wait for a device then.
fn end_expired_leases<'a>(
    cluster: &'a Cluster,
    observed: &Observed,
    now: Now,
    plan: &mut Plan,
) -> Vec<&'a Job> {
    let mut queue = Vec::new();
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
            continue;
        }
        let end = ending::interrupted(job, LeaseEnd::NodeLost, None, now.wall);
        if matches!(end, Change::LeaseEnded { .. }) {
            queue.push(job);
        }
        plan.changes.push(end);
    }
    queue
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
