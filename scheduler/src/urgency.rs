//! In which order jobs are looked after: by priority, by how long they have waited, by deadline, and fairly between the
//! people who submit them.

use std::collections::BTreeMap;

use hatchery_common::{id::Name, time::Timestamp};

use crate::cluster::{Cluster, Job};

/// A job that waits becomes more urgent by one point of priority in so many milliseconds.
const AGEING_MILLIS_PER_POINT: u64 = 6 * 60 * 1000;
/// And by no more points than these: the longest wait lifts the least urgent job above the most urgent newcomer.
const AGEING_POINTS_MAX: u64 = 110;
/// What a job gains that would be late for its deadline if it waited much longer.
const LATE_POINTS: u64 = 20;
/// Jobs of the same ten points are placed together, as suits them all best; those above them come first.
const POINTS_PER_TIER: u64 = 10;

/// The tier of a job that needs `secs_least` on the best device; higher ones come first.
pub(crate) fn tier(job: &Job, secs_least: f64, now: Timestamp) -> u64 {
    let late = job.spec.queue.deadline.is_some_and(|deadline| {
        // Half as long again as it takes, for what comes between.
        deadline.since(now).as_secs_f64() < 1.5 * secs_least
    });
    (points(job, now) + if late { LATE_POINTS } else { 0 }) / POINTS_PER_TIER
}

/// A job's priority and what its age adds.
pub(crate) fn points(job: &Job, now: Timestamp) -> u64 {
    let age = now.since(job.submitted_at).as_millis() as u64;
    let ageing = (age / AGEING_MILLIS_PER_POINT).min(AGEING_POINTS_MAX);
    u64::from(job.spec.queue.priority.get()) + ageing
}

/// How many jobs each person has in the fleet that have not ended: a job of somebody who has few counts for more.
pub(crate) struct Shares<'a>(BTreeMap<&'a Name, u32>);

impl<'a> Shares<'a> {
    pub(crate) fn of(cluster: &'a Cluster) -> Self {
        let mut jobs: BTreeMap<&Name, u32> = BTreeMap::new();
        for job in cluster.jobs.values().filter(|job| !job.phase.is_terminal()) {
            *jobs.entry(&job.submitter).or_default() += 1;
        }
        Self(jobs)
    }

    /// What a job counts for: everybody's jobs count for the same together.
    pub(crate) fn weight(&self, job: &Job) -> f64 {
        1.0 / f64::from(self.0.get(&job.submitter).copied().unwrap_or(1).max(1))
    }
}
