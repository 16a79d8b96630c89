//! How long this node may act on what it was told.
//!
//! The coordinator gives a node's attempts away when it has heard nothing for the lease. The agent cannot know when a
//! report arrived, but it knows when it sent it, which was earlier. So counted from there, less a margin, its own
//! deadline always comes first (invariant I6).
//!
//! A coordinator that is down gives nothing away, and when it is back every lease has its full term again (invariant I5). So
//! when its machine says that nobody listens there, the lease runs on as if a report had been answered; a machine that says
//! nothing may as well be cut off.
//!
//! Boot time goes on while a machine is suspended: a laptop that wakes finds
//! its deadline passed.
//!
//! ```text
//! report sent                      stop_by         deadline        lease
//!      |------- start, train --------|-- checkpoint --|--- margin ---|
//!                                    trainers stop    killed         given away
//! ```

use std::{collections::VecDeque, time::Duration};

use hatchery_common::{faults, time::BootTime};

/// Into how many parts a lease is divided.
const PARTS: u32 = 5;
/// Parts at its end that are left unused, against all that clocks and schedulers may do.
const MARGIN_PARTS: u32 = 1;
/// Parts before the margin in which trainers may write a last checkpoint.
const STOPPING_PARTS: u32 = 1;
/// A lease that ends too late, for tests.
const MARGINLESS: Duration = Duration::from_hours(1);
/// Most reports whose answer is awaited; older ones no longer count.
const AWAITED_MAX: usize = 64;

/// What may be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Attempts may start and run.
    Live,
    /// Nothing may start; trainers are to write a checkpoint and stop.
    Closing,
    Over,
}

/// The node's lease: one for all of its attempts.
#[derive(Clone, Debug, Default)]
pub struct Lease {
    length: Duration,
    /// When the coordinator last knew, or could not have known better, that this node has its lease.
    acknowledged_sent: Option<BootTime>,
    /// When the last report that was answered was sent.
    answered_sent: Option<BootTime>,
    awaited: VecDeque<(u64, BootTime)>,
}

impl Lease {
    /// Takes the length from an assignment.
    pub fn set_length(&mut self, length: Duration) {
        self.length = length;
    }

    /// A report goes out; call this before it is handed to the network.
    pub fn report_sent(&mut self, sequence: u64, now: BootTime) {
        if self.awaited.len() == AWAITED_MAX {
            self.awaited.pop_front();
        }
        self.awaited.push_back((sequence, now));
    }

    /// A report was answered; true if the lease now runs longer. One that was never sent in this session is ignored.
    pub fn report_received(&mut self, sequence: u64) -> bool {
        let Some(position) = self.awaited.iter().position(|(sent, _)| *sent == sequence) else {
            return false;
        };
        let (_, sent) = self.awaited[position];
        self.awaited.drain(..=position);
        self.answered_sent = self.answered_sent.max(Some(sent));
        let longer = self.acknowledged_sent.is_none_or(|before| sent > before);
        if longer {
            self.acknowledged_sent = Some(sent);
        }
        longer
    }

    /// When the coordinator was dialled, at `dialled`, its machine said that nobody listens there; true if the lease runs
    /// longer by that. It does if it ran still, and for no longer than `outage_max` after the last answer.
    pub fn coordinator_was_down(&mut self, dialled: BootTime, outage_max: Duration) -> bool {
        let is_believed = self.answered_sent.is_some_and(|answered| dialled.since(answered) <= outage_max);
        let longer = is_believed
            && self.state(dialled) != LeaseState::Over
            && self.acknowledged_sent.is_some_and(|before| dialled > before);
        if longer {
            self.acknowledged_sent = Some(dialled);
        }
        longer
    }

    /// A new session counts its reports anew; what was granted before still runs.
    pub fn session_began(&mut self) {
        self.awaited.clear();
    }

    /// When trainers are to write their last checkpoint and stop. None: nothing was granted yet.
    pub fn stop_by(&self) -> Option<BootTime> {
        self.after(PARTS - MARGIN_PARTS - STOPPING_PARTS)
    }

    /// When nothing of it may run any more.
    pub fn deadline(&self) -> Option<BootTime> {
        self.after(PARTS - MARGIN_PARTS)
    }

    fn after(&self, parts: u32) -> Option<BootTime> {
        let length = if faults::strikes("mutant::lease_margin") { MARGINLESS } else { self.length };
        Some(self.acknowledged_sent? + length / PARTS * parts)
    }

    /// What may be done at `now`.
    pub fn state(&self, now: BootTime) -> LeaseState {
        match (self.stop_by(), self.deadline()) {
            (Some(stop_by), _) if now < stop_by => LeaseState::Live,
            (_, Some(deadline)) if now < deadline => LeaseState::Closing,
            _ => LeaseState::Over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        let mut lease = Lease::default();
        lease.set_length(Duration::from_secs(10));
        lease
    }

    #[test]
    fn it_runs_from_the_sending_of_the_last_report_that_was_answered() {
        let mut lease = lease();
        assert_eq!(lease.state(BootTime(0)), LeaseState::Over, "nothing was granted");
        lease.report_sent(1, BootTime(1000));
        lease.report_sent(2, BootTime(2000));
        assert_eq!(lease.state(BootTime(2000)), LeaseState::Over, "nothing was answered");
        assert!(lease.report_received(1));
        assert_eq!((lease.stop_by(), lease.deadline()), (Some(BootTime(7000)), Some(BootTime(9000))));
        assert!(lease.report_received(2));
        assert!(!lease.report_received(1), "an older answer changes nothing");
        assert!(!lease.report_received(9), "nor does one to a report that was never sent");
        for (now, state) in [
            (2000, LeaseState::Live),
            (7999, LeaseState::Live),
            (8000, LeaseState::Closing),
            (9999, LeaseState::Closing),
            (10_000, LeaseState::Over),
        ] {
            assert_eq!(lease.state(BootTime(now)), state, "at {now}");
        }
    }

    #[test]
    fn an_answer_that_comes_after_a_long_sleep_grants_nothing() {
        let mut lease = lease();
        lease.report_sent(1, BootTime(1000));
        assert!(lease.report_received(1));
        assert_eq!(lease.state(BootTime(3_600_000)), LeaseState::Over);
    }

    #[test]
    fn a_new_session_does_not_answer_for_the_old_one() {
        let mut lease = lease();
        lease.report_sent(1, BootTime(1000));
        lease.session_began();
        assert!(!lease.report_received(1));
        lease.report_sent(1, BootTime(5000));
        assert!(lease.report_received(1));
        assert_eq!(lease.deadline(), Some(BootTime(13_000)));
    }

    #[test]
    fn a_coordinator_that_is_down_gives_nothing_away() {
        const OUTAGE_MAX: Duration = Duration::from_mins(1);
        let mut lease = lease();
        assert!(!lease.coordinator_was_down(BootTime(1), OUTAGE_MAX), "nothing was granted");
        lease.report_sent(1, BootTime(1000));
        assert!(!lease.coordinator_was_down(BootTime(1500), OUTAGE_MAX), "nothing was answered");
        lease.report_received(1);
        for dialled in (5000..=61_000).step_by(4000) {
            assert!(lease.coordinator_was_down(BootTime(dialled), OUTAGE_MAX), "at {dialled}");
            assert_eq!(lease.deadline(), Some(BootTime(dialled + 8000)));
            assert!(
                !lease.coordinator_was_down(BootTime(dialled - 1), OUTAGE_MAX),
                "what is older says less"
            );
        }
        assert!(
            !lease.coordinator_was_down(BootTime(62_000), OUTAGE_MAX),
            "so long an outage is not believed"
        );
        assert_eq!(lease.state(BootTime(69_000)), LeaseState::Over);
        lease.report_sent(2, BootTime(80_000));
        lease.report_received(2);
        assert!(!lease.coordinator_was_down(BootTime(88_000), OUTAGE_MAX), "what is over stays over");
        assert!(lease.coordinator_was_down(BootTime(87_999), OUTAGE_MAX), "it counts from the last answer");
    }

    #[test]
    fn the_deadline_always_comes_before_the_coordinators() {
        let lengths = [0, 1, 7, 999, 15_000, u64::from(u32::MAX)];
        for length in lengths {
            let mut lease = Lease::default();
            lease.set_length(Duration::from_millis(length));
            lease.report_sent(1, BootTime(500));
            lease.report_received(1);
            let given_away = 500 + length; // at the earliest: the report cannot have arrived before it was sent
            assert!(lease.deadline().unwrap().0 <= given_away);
            assert!(length < 5 || lease.deadline().unwrap().0 < given_away);
        }
    }
}
