//! What to do next, as a pure function: what is wished, what is there, what the lease allows -> steps.
//!
//! There are no start and stop commands that could be lost. Whatever happened before, comparing the newest assignment
//! with what is there gives the steps that lead from one to the other; when they agree there are none.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hatchery_common::{
    device::Device,
    id::{AttemptId, CheckpointId, JobId},
    session::{ATTEMPTS_MAX, AssignedAttempt, Assignment, UnreadableAttempt},
    time::BootTime,
};

use crate::lease::LeaseState;

/// How long a trainer that was told to stop may take before it is killed. The lease may end it sooner.
pub const STOP_GRACE: Duration = Duration::from_mins(1);
/// Most checkpoints fetched at the same time.
pub const FETCHES_MAX: usize = 2;
/// How long a checkpoint that nobody wishes to be here is kept: one that was just made is often wished for a moment later.
pub const UNWISHED_GRACE: Duration = Duration::from_mins(1);

/// What is wished of this node.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The newest assignment, if any came yet.
    pub assignment: Option<&'a Assignment>,
    /// Whether it came in the present session. An older one keeps running what runs, and begins nothing.
    pub fresh: bool,
    /// Whether the agent itself is about to end.
    pub leaving: bool,
    /// Whether the devices are the owner's for now: nothing runs on them. Checkpoints come and go as ever.
    pub away: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Every attempt known here.
    pub attempts: Vec<LocalAttempt>,
    /// Every checkpoint held or fetched here.
    pub checkpoints: Vec<LocalCheckpoint>,
    /// For each job the checkpoint that answers here.
    pub active: BTreeMap<JobId, CheckpointId>,
    /// Whether room is short: what nobody wishes goes at once.
    pub is_short_of_room: bool,
}

/// An attempt as it is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAttempt {
    pub key: AttemptId,
    /// Where it runs. None for one that was left over by an earlier agent.
    pub device: Option<Device>,
    /// How far it is.
    pub phase: LocalPhase,
}

/// How far an attempt is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalPhase {
    /// Its folder is there, from before the agent was started again.
    Leftover {
        /// Whether it has checkpoints that may not have been delivered.
        undelivered: bool,
    },
    /// What it needs is being fetched, or its trainer runs.
    Active,
    /// It was told to stop.
    Stopping {
        since: BootTime,
    },
    /// No trainer runs any more; its checkpoints are on their way.
    Delivering,
    Ended,
}

impl LocalPhase {
    /// Whether the device is taken.
    fn occupies(self) -> bool {
        matches!(self, Self::Active | Self::Stopping { .. })
    }
}

/// A checkpoint as it is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalCheckpoint {
    pub id: CheckpointId,
    /// How far it is.
    pub phase: CheckpointPhase,
    /// Whether all of its files are here, tried or not.
    pub is_here: bool,
    /// Whether an attempt goes on from it.
    pub in_use: bool,
    /// When somebody last wished it here.
    pub wished_at: BootTime,
}

/// How far a checkpoint is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointPhase {
    /// Its files are here; nobody tried whether it answers.
    Held,
    /// It is being fetched, verified or tried.
    Fetching,
    Ready,
    /// It could not be had.
    Failed {
        /// When to try again.
        retry_at: BootTime,
    },
}

/// Why a trainer is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The assignment says so.
    Asked,
    LeaseEnds,
    Leaving,
    /// The machine's owner needs it.
    NodeAway,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Fetch what it needs and start its trainer; for one that is to stop anyway: only deliver what is left of it.
    StartAttempt(Box<AssignedAttempt>),
    /// Report it as failed: this version cannot read its spec.
    RefuseAttempt(UnreadableAttempt),
    /// Tell its trainer to write a checkpoint and stop.
    StopAttempt(AttemptId, StopReason),
    /// It has lost its lease, and checkpoints of it are left from before the agent was started again: offer them.
    OfferLeftovers(AttemptId),
    /// End its trainer at once.
    KillAttempt(AttemptId),
    /// Nobody wants to hear of it any more: remove its folder.
    ForgetAttempt(AttemptId),
    /// Fetch, verify and try it.
    FetchCheckpoint(CheckpointId),
    DropCheckpoint(CheckpointId),
    /// Let it answer for its job from now on.
    Activate(JobId, CheckpointId),
    /// Nothing is to answer for the job any more.
    Deactivate(JobId),
}

/// The steps from what is there to what is wished, fencing first. Carrying them out and asking again comes to an end.
pub fn reconcile(wish: Wish<'_>, observed: &Observed, lease: LeaseState, now: BootTime) -> Vec<Step> {
    let mut steps = Vec::new();
    for attempt in &observed.attempts {
        steps.extend(settle_attempt(wish, attempt, lease, now));
    }
    if let Some(assignment) = wish.assignment.filter(|_| wish.fresh && !wish.leaving) {
        start_attempts(assignment, observed, lease, wish.away, &mut steps);
        refuse_attempts(assignment, observed, &mut steps);
        fetch_checkpoints(assignment, observed, now, &mut steps);
        activate(assignment, observed, &mut steps);
        drop_checkpoints(assignment, observed, now, &mut steps);
    }
    steps
}

/// What becomes of one attempt that is here.
fn settle_attempt(wish: Wish<'_>, attempt: &LocalAttempt, lease: LeaseState, now: BootTime) -> Option<Step> {
    let key = attempt.key;
    let assigned = wish.assignment.map(|assignment| is_to_stop(assignment, key));
    let dropped = assigned == Some(None);
    match attempt.phase {
        LocalPhase::Leftover { undelivered: true } => {
            (dropped && wish.fresh).then_some(Step::OfferLeftovers(key))
        }
        // What an attempt made that has lost its lease may still be used: the coordinator is asked for each checkpoint.
        LocalPhase::Delivering => None,
        LocalPhase::Leftover { undelivered: false } | LocalPhase::Ended => {
            (dropped && wish.fresh).then_some(Step::ForgetAttempt(key))
        }
        LocalPhase::Active | LocalPhase::Stopping { .. } if dropped || lease == LeaseState::Over => {
            Some(Step::KillAttempt(key))
        }
        LocalPhase::Stopping { since } => (now.since(since) >= STOP_GRACE).then_some(Step::KillAttempt(key)),
        LocalPhase::Active => {
            let asked = assigned.flatten().unwrap_or_default();
            let reason = match lease {
                _ if asked => Some(StopReason::Asked),
                _ if wish.leaving => Some(StopReason::Leaving),
                _ if wish.away => Some(StopReason::NodeAway),
                LeaseState::Closing => Some(StopReason::LeaseEnds),
                LeaseState::Live | LeaseState::Over => None,
            };
            reason.map(|reason| Step::StopAttempt(key, reason))
        }
    }
}

/// Whether an attempt is to stop; none: it is not assigned.
fn is_to_stop(assignment: &Assignment, key: AttemptId) -> Option<bool> {
    let readable = assignment.attempts.iter().map(|assigned| (assigned.id, assigned.stop));
    let unreadable = assignment.unreadable.iter().map(|one| (one.id, one.stop));
    readable.chain(unreadable).find(|(id, _)| *id == key).map(|(_, stop)| stop)
}

fn refuse_attempts(assignment: &Assignment, observed: &Observed, steps: &mut Vec<Step>) {
    let is_known = |one: &UnreadableAttempt| {
        let is_new = |phase| matches!(phase, LocalPhase::Leftover { .. });
        observed.attempts.iter().any(|local| local.key == one.id && !is_new(local.phase))
    };
    let new = assignment.unreadable.iter().filter(|one| !is_known(one));
    let room = ATTEMPTS_MAX.saturating_sub(observed.attempts.len());
    steps.extend(new.take(room).cloned().map(Step::RefuseAttempt));
}

fn start_attempts(
    assignment: &Assignment,
    observed: &Observed,
    lease: LeaseState,
    away: bool,
    steps: &mut Vec<Step>,
) {
    if lease != LeaseState::Live {
        return;
    }
    let mut taken: BTreeSet<Device> = observed
        .attempts
        .iter()
        .filter(|attempt| attempt.phase.occupies())
        .filter_map(|attempt| attempt.device)
        .collect();
    let mut known = observed.attempts.len();
    for assigned in &assignment.attempts {
        let local = observed.attempts.iter().find(|attempt| attempt.key == assigned.id);
        match local {
            Some(local) if !matches!(local.phase, LocalPhase::Leftover { .. }) => continue,
            None if known >= ATTEMPTS_MAX => continue,
            _ => {}
        }
        // One that only delivers what is left of it needs no device.
        if assigned.stop || !away && taken.insert(assigned.device) {
            known += usize::from(local.is_none());
            steps.push(Step::StartAttempt(Box::new(assigned.clone())));
        }
    }
}

fn fetch_checkpoints(assignment: &Assignment, observed: &Observed, now: BootTime, steps: &mut Vec<Step>) {
    let local = |id: CheckpointId| observed.checkpoints.iter().find(|checkpoint| checkpoint.id == id);
    let phase_of = |id: CheckpointId| local(id).map(|checkpoint| checkpoint.phase);
    let fetching =
        observed.checkpoints.iter().filter(|local| local.phase == CheckpointPhase::Fetching).count();
    let wanted = assignment.checkpoints.iter().rev().filter(|id| match phase_of(**id) {
        None | Some(CheckpointPhase::Held) => true,
        Some(CheckpointPhase::Failed { retry_at }) => now >= retry_at,
        Some(CheckpointPhase::Fetching | CheckpointPhase::Ready) => false,
    });
    // What answers here does so until something else can, also when the agent was started again: so it is tried first,
    // and again if that fails.
    let answering = observed.active.values().filter(|id| {
        let is_due = |local: &LocalCheckpoint| match local.phase {
            CheckpointPhase::Held => true,
            CheckpointPhase::Failed { retry_at } => local.is_here && now >= retry_at,
            CheckpointPhase::Fetching | CheckpointPhase::Ready => false,
        };
        !assignment.checkpoints.contains(id) && local(**id).is_some_and(is_due)
    });
    let all = answering.chain(wanted);
    steps.extend(all.take(FETCHES_MAX.saturating_sub(fetching)).map(|id| Step::FetchCheckpoint(*id)));
}

/// A checkpoint answers for its job once it has proved that it can; until then the one before does.
fn activate(assignment: &Assignment, observed: &Observed, steps: &mut Vec<Step>) {
    let is_ready =
        |id| observed.checkpoints.iter().any(|local| local.id == id && local.phase == CheckpointPhase::Ready);
    let new = assignment.active.iter().filter(|(job, id)| observed.active.get(job) != Some(id));
    steps.extend(new.filter(|(_, id)| is_ready(**id)).map(|(job, id)| Step::Activate(*job, *id)));
    let over = observed.active.keys().filter(|job| !assignment.active.contains_key(job));
    steps.extend(over.map(|job| Step::Deactivate(*job)));
}

fn drop_checkpoints(assignment: &Assignment, observed: &Observed, now: BootTime, steps: &mut Vec<Step>) {
    let wished: BTreeSet<CheckpointId> = assignment
        .checkpoints
        .iter()
        .copied()
        .chain(assignment.attempts.iter().filter_map(|assigned| assigned.resume_from))
        .chain(observed.active.values().copied())
        .collect();
    let grace = if observed.is_short_of_room { Duration::ZERO } else { UNWISHED_GRACE };
    let unwanted = observed
        .checkpoints
        .iter()
        .filter(|local| !wished.contains(&local.id) && !local.in_use && now.since(local.wished_at) >= grace);
    steps.extend(unwanted.map(|local| Step::DropCheckpoint(local.id)));
}
