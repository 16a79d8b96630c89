//! The draft of a plan: the cluster as it will be once the events made so far are applied.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use hatchery_common::{
    device::Device,
    id::{JobId, Name, NodeId},
    time::Timestamp,
    trainer::Progress,
};

use crate::{
    cluster::{Cluster, HandOver, Job, Lease},
    observed::{InLine, Now, Observed},
    speed::SpeedBook,
    wait::Wait,
};

/// The cluster as it will be once the events made so far are applied.
pub(crate) struct Draft<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) observed: &'a Observed,
    pub(crate) now: Now,
    pub(crate) speeds: SpeedBook,
    /// Jobs that wait for a device, in the order of their submission.
    pub(crate) queue: Vec<&'a Job>,
    /// Leases that are as they were.
    pub(crate) kept: Vec<&'a Job>,
    pub(crate) granted: Vec<(&'a Job, Lease)>,
    /// What attempts are newly told to hand over.
    pub(crate) handed_over: BTreeMap<JobId, HandOver>,
    /// The lines as they were last meant to be.
    pub(crate) intended: Cow<'a, BTreeMap<(NodeId, Device), Vec<InLine>>>,
}

impl<'a> Draft<'a> {
    pub(crate) fn leases(&self) -> impl Iterator<Item = Leased<'a, '_>> {
        let kept = self.kept.iter().filter_map(|job| {
            let job: &'a Job = job;
            let hand_over = self.handed_over.get(&job.id).or(job.hand_over.as_ref());
            let progress = self.observed.progress(job, job.lease.as_ref()?.node);
            Some(Leased { job, lease: job.lease.as_ref()?, hand_over, progress })
        });
        let granted = self.granted.iter();
        kept.chain(granted.map(|(job, lease)| Leased { job, lease, hand_over: None, progress: None }))
    }

    /// Whether a person has as many jobs running as one may have.
    pub(crate) fn is_at_limit(&self, submitter: &Name) -> bool {
        let theirs = || self.leases().filter(|one| one.job.submitter == *submitter).count();
        self.observed.policy.running_per_submitter_max.is_some_and(|limit| theirs() >= limit)
    }

    /// Takes the jobs of people who are at their limit out of the queue.
    pub(crate) fn hold_back(&mut self, waits: &mut BTreeMap<JobId, Wait>) {
        let Some(limit) = self.observed.policy.running_per_submitter_max else { return };
        let submitters: BTreeSet<&Name> = self.queue.iter().map(|job| &job.submitter).collect();
        let at_limit: BTreeSet<&Name> =
            submitters.into_iter().filter(|name| self.is_at_limit(name)).collect();
        for job in self.queue.extract_if(.., |job| at_limit.contains(&job.submitter)) {
            waits.insert(job.id, Wait::SubmitterAtLimit { submitter: job.submitter.clone(), limit });
        }
    }
}

/// A lease of the draft.
pub(crate) struct Leased<'a, 'l> {
    /// As it is before the plan: a lease that the plan grants has one that is queued still.
    pub(crate) job: &'a Job,
    pub(crate) lease: &'l Lease,
    /// Why its attempt is to hand over, if it is told so.
    pub(crate) hand_over: Option<&'l HandOver>,
    /// How far its attempt is, as was last heard.
    pub(crate) progress: Option<Progress>,
}

impl Leased<'_, '_> {
    /// Seconds since it was granted.
    pub(crate) fn secs_held(&self, now: Timestamp) -> f64 {
        now.since(self.lease.granted_at).as_secs_f64()
    }

    /// Steps that its attempt has to make still.
    pub(crate) fn steps_left(&self) -> u64 {
        let done = self.progress.map_or(self.job.steps_done(), |progress| progress.step);
        self.job.spec.train.raw().steps.saturating_sub(done)
    }
}
