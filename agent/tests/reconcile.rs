//! The reconciler: single decisions, and what holds in any world.
#![allow(clippy::unwrap_used, reason = "helpers of tests may stop the test")]

use std::{collections::BTreeSet, time::Duration};

use hatchery_agent::{
    lease::LeaseState,
    reconcile::{
        CheckpointPhase, FETCHES_MAX, LocalAttempt, LocalCheckpoint, LocalPhase, Observed, STOP_GRACE, Step,
        StopReason, UNWISHED_GRACE, Wish, reconcile,
    },
};
use hatchery_common::{
    device::Device,
    digest::Digest,
    id::{AttemptId, CheckpointId, DatasetId, Epoch, JobId, Name},
    recipe::{JobSpec, Recipe},
    session::{AssignedAttempt, Assignment},
    time::BootTime,
};
use proptest::prelude::*;

fn job(number: u8) -> JobId {
    JobId::from_bytes([number; 16])
}

fn checkpoint(number: u8) -> CheckpointId {
    CheckpointId(Digest::of(&[number]))
}

fn spec() -> JobSpec {
    let recipe = Recipe::parse(None, "", &[]).unwrap();
    recipe.job(DatasetId(Digest::of(b"")), &Name::from_lossy("job"))
}

fn assigned(number: u8, epoch: u64, device: Device) -> AssignedAttempt {
    AssignedAttempt {
        id: AttemptId { job: job(number), epoch: Epoch(epoch) },
        spec: spec(),
        device,
        resume_from: None,
        stop: false,
    }
}

fn local(number: u8, epoch: u64, device: Device, phase: LocalPhase) -> LocalAttempt {
    LocalAttempt { key: AttemptId { job: job(number), epoch: Epoch(epoch) }, device: Some(device), phase }
}

fn assignment(attempts: Vec<AssignedAttempt>, checkpoints: Vec<CheckpointId>) -> Assignment {
    Assignment { lease: Duration::from_secs(15), attempts, checkpoints, ..Assignment::default() }
}

fn fresh(assignment: &Assignment) -> Wish<'_> {
    Wish { assignment: Some(assignment), fresh: true, leaving: false, away: false }
}

const NOW: BootTime = BootTime(1_000_000);

#[test]
fn an_assigned_attempt_starts_once_and_only_under_a_live_lease() {
    let wished = assignment(vec![assigned(1, 1, Device::CPU)], vec![]);
    let nothing = Observed::default();
    let start = vec![Step::StartAttempt(Box::new(wished.attempts[0].clone()))];
    assert_eq!(reconcile(fresh(&wished), &nothing, LeaseState::Live, NOW), start);
    for lease in [LeaseState::Closing, LeaseState::Over] {
        assert_eq!(reconcile(fresh(&wished), &nothing, lease, NOW), vec![]);
    }
    for (is_fresh, leaving) in [(false, false), (true, true)] {
        let wish = Wish { assignment: Some(&wished), fresh: is_fresh, leaving, away: false };
        assert_eq!(reconcile(wish, &nothing, LeaseState::Live, NOW), vec![]);
    }
    for phase in [LocalPhase::Active, LocalPhase::Delivering, LocalPhase::Ended] {
        let there = Observed { attempts: vec![local(1, 1, Device::CPU, phase)], ..Default::default() };
        assert_eq!(reconcile(fresh(&wished), &there, LeaseState::Live, NOW), vec![], "{phase:?}");
    }
    for undelivered in [false, true] {
        let leftover = local(1, 1, Device::CPU, LocalPhase::Leftover { undelivered });
        let leftover =
            Observed { attempts: vec![LocalAttempt { device: None, ..leftover }], ..Default::default() };
        assert_eq!(reconcile(fresh(&wished), &leftover, LeaseState::Live, NOW), start);
    }
}

#[test]
fn a_newer_epoch_waits_until_the_device_is_free() {
    let wished = assignment(vec![assigned(1, 2, Device::CPU)], vec![]);
    let old = local(1, 1, Device::CPU, LocalPhase::Active);
    let there = Observed { attempts: vec![old], ..Default::default() };
    assert_eq!(reconcile(fresh(&wished), &there, LeaseState::Live, NOW), vec![Step::KillAttempt(old.key)]);
    let there =
        Observed { attempts: vec![local(1, 1, Device::CPU, LocalPhase::Ended)], ..Default::default() };
    let steps = reconcile(fresh(&wished), &there, LeaseState::Live, NOW);
    assert_eq!(steps[0], Step::ForgetAttempt(old.key));
    assert!(matches!(&steps[1], Step::StartAttempt(attempt) if attempt.id.epoch == Epoch(2)));
}

#[test]
fn what_is_left_of_an_attempt_that_lost_its_lease_is_offered_before_it_is_forgotten() {
    let wished = assignment(vec![], vec![]);
    let phases = [
        (LocalPhase::Delivering, false, false),
        (LocalPhase::Leftover { undelivered: true }, true, false),
        (LocalPhase::Leftover { undelivered: false }, false, true),
        (LocalPhase::Ended, false, true),
    ];
    for (phase, offers, forgets) in phases {
        let old = local(1, 1, Device::CPU, phase);
        let there = Observed { attempts: vec![old], ..Default::default() };
        let steps = reconcile(fresh(&wished), &there, LeaseState::Over, NOW);
        let expected = match (offers, forgets) {
            (true, _) => vec![Step::OfferLeftovers(old.key)],
            (_, true) => vec![Step::ForgetAttempt(old.key)],
            _ => vec![],
        };
        assert_eq!(steps, expected, "{phase:?}");
        // As long as nobody has said so in this session, it may be wished for still.
        let stale = Wish { fresh: false, ..fresh(&wished) };
        assert_eq!(reconcile(stale, &there, LeaseState::Over, NOW), vec![], "{phase:?}");
    }
}

#[test]
fn trainers_stop_before_the_lease_ends_and_are_killed_when_it_has() {
    let wished = assignment(vec![assigned(1, 1, Device::CPU)], vec![]);
    let running = local(1, 1, Device::CPU, LocalPhase::Active);
    let there = Observed { attempts: vec![running], ..Default::default() };
    // Also without a session, and also with an assignment of an earlier one.
    for is_fresh in [true, false] {
        let wish = Wish { assignment: Some(&wished), fresh: is_fresh, leaving: false, away: false };
        assert_eq!(reconcile(wish, &there, LeaseState::Live, NOW), vec![]);
        let stop = vec![Step::StopAttempt(running.key, StopReason::LeaseEnds)];
        assert_eq!(reconcile(wish, &there, LeaseState::Closing, NOW), stop);
        assert_eq!(reconcile(wish, &there, LeaseState::Over, NOW), vec![Step::KillAttempt(running.key)]);
    }
}

#[test]
fn while_the_owner_needs_the_machine_nothing_runs_and_checkpoints_still_come() {
    let stop = AssignedAttempt { stop: true, ..assigned(2, 1, Device::cuda(0)) };
    let wished = assignment(vec![assigned(1, 1, Device::CPU), stop.clone()], vec![checkpoint(1)]);
    let away = Wish { away: true, ..fresh(&wished) };
    let only_ends = [Step::StartAttempt(Box::new(stop)), Step::FetchCheckpoint(checkpoint(1))];
    assert_eq!(reconcile(away, &Observed::default(), LeaseState::Live, NOW), only_ends);
    let running = local(1, 1, Device::CPU, LocalPhase::Active);
    let there = Observed { attempts: vec![running], ..Default::default() };
    // Also while the coordinator is away, and before it has said anything.
    for wish in [Wish { fresh: false, ..away }, Wish { assignment: None, fresh: false, ..away }] {
        let steps = reconcile(wish, &there, LeaseState::Live, NOW);
        assert_eq!(steps, [Step::StopAttempt(running.key, StopReason::NodeAway)]);
    }
    let stopping = LocalAttempt { phase: LocalPhase::Stopping { since: NOW }, ..running };
    let there = Observed { attempts: vec![stopping], ..Default::default() };
    let steps = reconcile(Wish { fresh: false, ..away }, &there, LeaseState::Live, NOW + STOP_GRACE);
    assert_eq!(steps, [Step::KillAttempt(running.key)], "the owner need not wait for ever");
}

#[test]
fn a_cancelled_attempt_stops_by_itself_or_is_killed() {
    let stop = AssignedAttempt { stop: true, ..assigned(1, 1, Device::CPU) };
    let wished = assignment(vec![stop.clone()], vec![]);
    let running = local(1, 1, Device::CPU, LocalPhase::Active);
    let there = |phase| Observed { attempts: vec![LocalAttempt { phase, ..running }], ..Default::default() };
    let steps = reconcile(fresh(&wished), &there(LocalPhase::Active), LeaseState::Live, NOW);
    assert_eq!(steps, vec![Step::StopAttempt(running.key, StopReason::Asked)]);
    let stopping = there(LocalPhase::Stopping { since: NOW });
    assert_eq!(reconcile(fresh(&wished), &stopping, LeaseState::Live, NOW), vec![]);
    let late = NOW + STOP_GRACE;
    assert_eq!(
        reconcile(fresh(&wished), &stopping, LeaseState::Live, late),
        vec![Step::KillAttempt(running.key)]
    );
    // One that was never here is taken up all the same, so that its end is reported.
    let steps = reconcile(fresh(&wished), &Observed::default(), LeaseState::Live, NOW);
    assert_eq!(steps, vec![Step::StartAttempt(Box::new(stop))]);
}

#[test]
fn checkpoints_come_newest_first_and_go_after_a_while() {
    let wished = assignment(vec![], (1..=4).map(checkpoint).collect());
    let steps = reconcile(fresh(&wished), &Observed::default(), LeaseState::Over, NOW);
    assert_eq!(steps, vec![Step::FetchCheckpoint(checkpoint(4)), Step::FetchCheckpoint(checkpoint(3))]);

    let held = |number, phase| LocalCheckpoint {
        id: checkpoint(number),
        phase,
        is_here: true,
        in_use: false,
        wished_at: NOW,
    };
    let failed = CheckpointPhase::Failed { retry_at: NOW + Duration::from_secs(1) };
    let there = Observed {
        checkpoints: vec![
            held(4, CheckpointPhase::Fetching),
            held(3, failed),
            held(2, CheckpointPhase::Held),
            held(9, CheckpointPhase::Ready),
            LocalCheckpoint { in_use: true, ..held(8, CheckpointPhase::Ready) },
        ],
        ..Default::default()
    };
    let steps = reconcile(fresh(&wished), &there, LeaseState::Live, NOW);
    assert_eq!(steps, vec![Step::FetchCheckpoint(checkpoint(2))]);
    let late = NOW + UNWISHED_GRACE;
    let steps = reconcile(fresh(&wished), &there, LeaseState::Live, late);
    assert_eq!(steps, vec![Step::FetchCheckpoint(checkpoint(3)), Step::DropCheckpoint(checkpoint(9))]);
    let stale = Wish { fresh: false, ..fresh(&wished) };
    assert_eq!(reconcile(stale, &there, LeaseState::Live, late), vec![], "nothing goes by an old assignment");
}

#[test]
fn a_checkpoint_answers_once_it_is_ready_and_the_one_before_stays_until_then() {
    let mut wished = assignment(vec![], vec![checkpoint(2)]);
    wished.active = [(job(1), checkpoint(2))].into();
    let there = |new: CheckpointPhase| Observed {
        checkpoints: [(1, CheckpointPhase::Ready), (2, new)]
            .map(|(number, phase)| LocalCheckpoint {
                id: checkpoint(number),
                phase,
                is_here: true,
                in_use: false,
                wished_at: NOW,
            })
            .to_vec(),
        active: [(job(1), checkpoint(1)), (job(9), checkpoint(1))].into(),
        ..Default::default()
    };
    let late = NOW + UNWISHED_GRACE;
    let over = Step::Deactivate(job(9));
    let failed = CheckpointPhase::Failed { retry_at: late + Duration::from_secs(1) };
    for phase in [CheckpointPhase::Fetching, failed] {
        let steps = reconcile(fresh(&wished), &there(phase), LeaseState::Live, late);
        assert_eq!(steps, std::slice::from_ref(&over), "the old one stays, wished or not");
    }
    let steps = reconcile(fresh(&wished), &there(CheckpointPhase::Ready), LeaseState::Live, late);
    assert_eq!(steps, [Step::Activate(job(1), checkpoint(2)), over]);
    let mut done = there(CheckpointPhase::Ready);
    done.active = wished.active.clone();
    let steps = reconcile(fresh(&wished), &done, LeaseState::Live, NOW);
    assert_eq!(steps, [], "it is dropped after a while");
    done.is_short_of_room = true;
    let steps = reconcile(fresh(&wished), &done, LeaseState::Live, NOW);
    assert_eq!(steps, [Step::DropCheckpoint(checkpoint(1))], "and at once where room is short");
    // After a start it is tried again before all others.
    let mut held = there(CheckpointPhase::Fetching);
    held.checkpoints[0].phase = CheckpointPhase::Held;
    let steps = reconcile(fresh(&wished), &held, LeaseState::Live, NOW);
    assert_eq!(steps[0], Step::FetchCheckpoint(checkpoint(1)));
    // And once more after that has failed, unless it is lost.
    held.checkpoints[0].phase = failed;
    let again = Step::FetchCheckpoint(checkpoint(1));
    let steps = |there: &Observed, now| reconcile(fresh(&wished), there, LeaseState::Live, now);
    assert!(!steps(&held, late).contains(&again));
    assert_eq!(steps(&held, late + Duration::from_secs(1))[0], again);
    held.checkpoints[0].is_here = false;
    assert!(!steps(&held, late + Duration::from_secs(1)).contains(&again));
}

/// A node without IO: it does what the steps say, and things happen to it.
#[derive(Clone, Debug, Default)]
struct World {
    observed: Observed,
}

impl World {
    fn apply(&mut self, step: &Step, now: BootTime) {
        let attempts = &mut self.observed.attempts;
        let phase_of = |attempts: &mut Vec<LocalAttempt>, key: &AttemptId, phase| {
            attempts.iter_mut().find(|attempt| attempt.key == *key).unwrap().phase = phase;
        };
        match step {
            Step::StartAttempt(assigned) => {
                attempts.retain(|attempt| attempt.key != assigned.id);
                let phase = if assigned.stop { LocalPhase::Delivering } else { LocalPhase::Active };
                let device = Some(assigned.device);
                attempts.push(LocalAttempt { key: assigned.id, device, phase });
            }
            Step::RefuseAttempt(unreadable) => {
                let key = unreadable.id;
                attempts.retain(|attempt| attempt.key != key);
                attempts.push(LocalAttempt { key, device: None, phase: LocalPhase::Ended });
            }
            Step::StopAttempt(key, _) => phase_of(attempts, key, LocalPhase::Stopping { since: now }),
            Step::KillAttempt(key) | Step::OfferLeftovers(key) => {
                phase_of(attempts, key, LocalPhase::Delivering);
            }
            Step::ForgetAttempt(key) => attempts.retain(|attempt| attempt.key != *key),
            Step::FetchCheckpoint(id) => {
                let checkpoints = &mut self.observed.checkpoints;
                checkpoints.retain(|local| local.id != *id);
                let phase = CheckpointPhase::Fetching;
                checkpoints.push(LocalCheckpoint {
                    id: *id,
                    phase,
                    is_here: false,
                    in_use: false,
                    wished_at: now,
                });
            }
            Step::DropCheckpoint(id) => self.observed.checkpoints.retain(|local| local.id != *id),
            Step::Activate(job, id) => drop(self.observed.active.insert(*job, *id)),
            Step::Deactivate(job) => drop(self.observed.active.remove(job)),
        }
    }

    /// The agent is killed and started again.
    fn restart(&mut self, undelivered: bool) {
        for attempt in &mut self.observed.attempts {
            (attempt.device, attempt.phase) = (None, LocalPhase::Leftover { undelivered });
        }
        for checkpoint in &mut self.observed.checkpoints {
            checkpoint.phase = CheckpointPhase::Held;
        }
    }

    fn finish_work(&mut self) {
        for checkpoint in &mut self.observed.checkpoints {
            (checkpoint.phase, checkpoint.is_here) = (CheckpointPhase::Ready, true);
        }
        for attempt in &mut self.observed.attempts {
            if matches!(attempt.phase, LocalPhase::Stopping { .. } | LocalPhase::Delivering) {
                attempt.phase = LocalPhase::Ended;
            }
        }
    }

    fn check(&self, wished: &Assignment, fresh: bool) {
        let mut devices = BTreeSet::new();
        for attempt in &self.observed.attempts {
            if matches!(attempt.phase, LocalPhase::Active | LocalPhase::Stopping { .. }) {
                assert!(devices.insert(attempt.device), "two trainers on {:?}", attempt.device);
                let is_wished = wished.attempts.iter().any(|assigned| assigned.id == attempt.key);
                assert!(is_wished || !fresh, "runs {:?}, which nobody assigned", attempt.key);
            }
        }
        for active in self.observed.active.values() {
            let is_here = self.observed.checkpoints.iter().any(|local| local.id == *active);
            assert!(is_here, "what answers is never dropped");
        }
        let fetching = |local: &&LocalCheckpoint| local.phase == CheckpointPhase::Fetching;
        assert!(self.observed.checkpoints.iter().filter(fetching).count() <= FETCHES_MAX);
    }
}

/// An assignment as a coordinator may give it: a device has at most one attempt, a job one epoch, and an epoch one
/// device.
fn assignments() -> impl Strategy<Value = Assignment> {
    let attempt = (0u8..4, 1u64..4, any::<bool>());
    let active = prop::collection::vec((0u8..4, any::<prop::sample::Index>()), 0..4);
    (prop::collection::vec(attempt, 0..4), prop::collection::vec(0u8..6, 0..5), active).prop_map(
        |(attempts, held, active)| {
            let (mut jobs, mut taken) = (BTreeSet::new(), BTreeSet::new());
            let device = |number: u8, epoch: u64| {
                [Device::CPU, Device::cuda(0), Device::cuda(1)][(number as usize + epoch as usize) % 3]
            };
            let attempts = attempts
                .into_iter()
                .filter(|(number, epoch, _)| jobs.insert(*number) && taken.insert(device(*number, *epoch)))
                .map(|(number, epoch, stop)| AssignedAttempt {
                    stop,
                    ..assigned(number, epoch, device(number, epoch))
                })
                .collect();
            let held: BTreeSet<u8> = held.into_iter().collect();
            let held: Vec<CheckpointId> = held.into_iter().map(checkpoint).collect();
            let active = active.into_iter().filter(|_| !held.is_empty());
            let active = active.map(|(number, index)| (job(number), *index.get(&held))).collect();
            Assignment { active, ..assignment(attempts, held) }
        },
    )
}

fn leases() -> impl Strategy<Value = LeaseState> {
    prop_oneof![3 => Just(LeaseState::Live), 1 => Just(LeaseState::Closing), 1 => Just(LeaseState::Over)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_history_stays_sound_and_comes_to_rest(
        rounds in prop::collection::vec(
            (assignments(), leases(), any::<[bool; 3]>(), prop::option::weighted(0.2, any::<bool>())),
            1..8,
        ),
    ) {
        let mut world = World::default();
        let mut now = NOW;
        for (wished, lease, [is_fresh, finishes, away], restarts) in &rounds {
            if let Some(undelivered) = restarts {
                world.restart(*undelivered);
            }
            now = now + Duration::from_secs(7);
            let wish = Wish { assignment: Some(wished), fresh: *is_fresh, leaving: false, away: *away };
            for step in reconcile(wish, &world.observed, *lease, now) {
                world.apply(&step, now);
            }
            world.check(wished, *is_fresh);
            if *lease == LeaseState::Over {
                let runs = |attempt: &LocalAttempt| matches!(attempt.phase, LocalPhase::Active | LocalPhase::Stopping { .. });
                prop_assert!(!world.observed.attempts.iter().any(runs), "runs past its deadline");
            }
            if *away {
                let active = |attempt: &LocalAttempt| attempt.phase == LocalPhase::Active;
                prop_assert!(!world.observed.attempts.iter().any(active), "trains on what is its owner's");
            }
            if *finishes {
                world.finish_work();
            }
        }

        let (wished, ..) = rounds.last().unwrap();
        for _ in 0..10 {
            now = now + UNWISHED_GRACE;
            for step in reconcile(fresh(wished), &world.observed, LeaseState::Live, now) {
                world.apply(&step, now);
            }
            world.finish_work();
        }
        prop_assert_eq!(reconcile(fresh(wished), &world.observed, LeaseState::Live, now), vec![]);
        let here: BTreeSet<AttemptId> = world.observed.attempts.iter().map(|attempt| attempt.key).collect();
        prop_assert_eq!(here, wished.attempts.iter().map(|assigned| assigned.id).collect());
        let held: BTreeSet<CheckpointId> = world.observed.checkpoints.iter().map(|local| local.id).collect();
        prop_assert_eq!(held, wished.checkpoints.iter().copied().collect());
        prop_assert_eq!(&world.observed.active, &wished.active);
    }
}
