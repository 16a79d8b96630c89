//! What always holds, looked for in what is left of a run. Each check is named after what it keeps, and gives what it
//! found against it.

mod answers;
mod disks;
mod events;
#[cfg(test)]
mod tests;
mod trainers;

pub(crate) use events::is_loss;

use std::fmt;

use super::evidence::Evidence;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is against: `I1` to `I12`, as `ARCHITECTURE.md` has them, or `liveness`, or `traffic` of too small a run.
    pub invariant: &'static str,
    pub text: String,
}

impl Finding {
    fn new(invariant: &'static str, text: impl Into<String>) -> Self {
        Self { invariant, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.text)
    }
}

/// A check.
pub type Check = fn(&Evidence) -> Vec<Finding>;

/// Every check, with what it keeps.
pub const CHECKS: [(&str, Check); 19] = [
    ("I1 acknowledged submissions are there", answers::acknowledged_submissions_are_there),
    ("I1 what was seen stays true", answers::what_was_seen_stays_true),
    ("I2 one request makes one job", answers::one_request_makes_one_job),
    ("I3 only the current epoch counts", events::only_the_current_epoch_counts),
    ("I3 a checkpoint is its epoch's own", trainers::checkpoints_are_their_epochs_own),
    ("I4 only legal transitions", events::only_legal_transitions),
    ("I4 no device is given twice", events::no_device_is_given_twice),
    ("I4 closed nodes get nothing", events::closed_nodes_get_nothing),
    ("I5 a restart gives every lease its term", events::restarts_give_every_lease_its_term),
    ("I6 nobody trains after the lease", trainers::nobody_trains_after_the_lease),
    ("I7 acknowledged checkpoints are whole", disks::acknowledged_checkpoints_are_whole),
    ("I7 nothing is acknowledged unsynced", answers::nothing_is_acknowledged_unsynced),
    ("I8 nobody holds unverified bytes", disks::nobody_holds_unverified_bytes),
    ("I9 no step is lost or doubled", trainers::no_step_is_lost_or_doubled),
    ("I10 poison is the job's own", events::poison_is_the_jobs_own),
    ("I11 what is referenced stays", disks::what_is_referenced_stays),
    ("I12 refusals are typed", answers::refusals_are_typed),
    ("I12 memory is bounded, nobody panics", answers::memory_is_bounded_and_nobody_panics),
    ("liveness: every job ends", events::every_job_ends),
];

pub fn all(evidence: &Evidence) -> Vec<Finding> {
    CHECKS.iter().flat_map(|(_, check)| check(evidence)).collect()
}
