//! What goes wrong in a run, and when: drawn from the seed.

use std::time::Duration;

use rand::{RngExt, rngs::SmallRng};

/// Machines with an agent. With the coordinator's and the people's own there are two more.
pub(crate) const AGENTS: usize = 3;
pub(crate) const COORDINATOR: usize = 0;
pub(crate) const PEOPLE: usize = AGENTS + 1;
pub(crate) const MACHINES: usize = AGENTS + 2;

/// Nothing goes wrong before this: the fleet is put together.
const FAULTS_FROM: Duration = Duration::from_secs(4);
/// From here on nothing goes wrong any more.
pub(crate) const HEALED_AT: Duration = Duration::from_secs(24);
/// So many things go wrong in a run.
const FAULTS: (usize, usize) = (4, 12);
/// Clocks gain or lose at most so much, in millionths: more than any quartz, and still little beside the margin of a
/// lease.
const DRIFT_PPM_MAX: i64 = 5000;

/// One thing that is done to the fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// A machine and the coordinator lose each other.
    Cut { machine: usize },
    /// The coordinator does not hear a machine.
    CutFrom { machine: usize },
    /// A machine does not hear the coordinator.
    CutTo { machine: usize },
    /// What a machine and the coordinator send each other is kept back.
    Hold { machine: usize },
    /// And comes now, late.
    Release { machine: usize },
    /// A machine's way to the coordinator is whole again.
    Mend { machine: usize },
    /// Messages take up to so many milliseconds.
    Latency { max_ms: u64 },
    /// Of a thousand messages so many are lost, and with each its connection.
    Loss { per_mille: u32 },
    /// The coordinator is killed.
    KillCoordinator,
    /// The coordinator is told to end; it starts again by itself.
    StopCoordinator,
    /// An agent is killed; its trainers are not.
    KillAgent { machine: usize },
    /// A machine's power goes.
    PowerOff { machine: usize },
    /// What was killed on a machine starts again.
    Start { machine: usize },
    /// An agent is told to end; it starts again by itself.
    StopAgent { machine: usize },
    /// A machine's wall clock jumps.
    WallJump { machine: usize, ms: i64 },
    /// A machine's boot clock jumps ahead, as over a suspension.
    BootJump { machine: usize, ms: u64 },
    /// Each call of the store takes so long.
    DiskDelay { ms: u64 },
    /// The store's disk has no room.
    DiskFull { is_full: bool },
    /// So many commits are durable and said to have failed.
    AnswersLost { count: u32 },
    /// A commit fails for good.
    DiskBroken,
    /// A trainer dies.
    TrainerCrash { machine: usize },
    /// A trainer hangs, and pays no heed to anything.
    TrainerDeaf { machine: usize },
    /// A machine's owner sits down at it, or leaves it.
    Owner { machine: usize, is_there: bool },
}

/// What happens in a run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In order of time.
    pub(crate) acts: Vec<(Duration, Act)>,
    /// How much each machine's clocks gain, in millionths.
    pub(crate) drift_ppm: [i64; MACHINES],
    /// Nothing happens but quick restarts of the coordinator: no training may end by that (I5).
    pub(crate) is_quiet: bool,
}

/// Of so many runs one is quiet.
const QUIET_EVERY: u64 = 10;

/// Whether the run of a seed is quiet.
pub(crate) const fn is_quiet(seed: u64) -> bool {
    seed.is_multiple_of(QUIET_EVERY)
}

impl Plan {
    pub(crate) fn draw(seed: u64, random: &mut SmallRng) -> Self {
        let is_quiet = is_quiet(seed);
        let drift_ppm = std::array::from_fn(|_| random.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX));
        let mut acts = if is_quiet { quiet(random) } else { faults(random) };
        acts.sort_by_key(|(at, _)| *at);
        Self { acts, drift_ppm, is_quiet }
    }
}

fn quiet(random: &mut SmallRng) -> Vec<(Duration, Act)> {
    let mut acts = Vec::new();
    for restart in 0..2 {
        let at = ms(random, 5_000..7_000) + Duration::from_secs(7) * restart;
        acts.push((at, Act::KillCoordinator));
        acts.push((at + ms(random, 10..300), Act::Start { machine: COORDINATOR }));
    }
    acts
}

fn faults(random: &mut SmallRng) -> Vec<(Duration, Act)> {
    let mut acts = Vec::new();
    let mut is_deaf = false;
    let count = random.random_range(FAULTS.0..=FAULTS.1);
    for _ in 0..count {
        let at = ms(random, FAULTS_FROM.as_millis() as u64..HEALED_AT.as_millis() as u64 - 1000);
        let until = |random: &mut SmallRng, max_ms: u64| (at + ms(random, 100..max_ms)).min(HEALED_AT);
        let machine = random.random_range(1..=AGENTS);
        let anyone = random.random_range(1..=PEOPLE);
        match random.random_range(0..22) {
            0 | 1 => acts.extend([
                (at, Act::Cut { machine: anyone }),
                (until(random, 15_000), Act::Mend { machine: anyone }),
            ]),
            2 => {
                acts.extend([(at, Act::CutFrom { machine }), (until(random, 12_000), Act::Mend { machine })]);
            }
            3 => {
                acts.extend([(at, Act::CutTo { machine }), (until(random, 12_000), Act::Mend { machine })]);
            }
            4 => acts.extend([
                (at, Act::Hold { machine: anyone }),
                (until(random, 9_000), Act::Release { machine: anyone }),
            ]),
            5 => acts.extend([
                (at, Act::Latency { max_ms: random.random_range(50..1500) }),
                (until(random, 8_000), Act::Latency { max_ms: LATENCY_MAX_MS }),
            ]),
            6 => acts.extend([
                (at, Act::Loss { per_mille: random.random_range(1..30) }),
                (until(random, 8_000), Act::Loss { per_mille: 0 }),
            ]),
            7 | 8 => acts.extend([
                (at, Act::KillCoordinator),
                (until(random, 9_000), Act::Start { machine: COORDINATOR }),
            ]),
            9 => acts.push((at, Act::StopCoordinator)),
            10 if !is_deaf => {
                acts.extend([
                    (at, Act::KillAgent { machine }),
                    (until(random, 9_000), Act::Start { machine }),
                ]);
            }
            11 => {
                acts.extend([
                    (at, Act::PowerOff { machine }),
                    (until(random, 9_000), Act::Start { machine }),
                ]);
            }
            12 => acts.push((at, Act::StopAgent { machine })),
            13 => acts.push((
                at,
                Act::WallJump {
                    machine: random.random_range(0..MACHINES),
                    ms: random.random_range(-600_000..600_000),
                },
            )),
            14 => acts.push((
                at,
                Act::BootJump {
                    machine: random.random_range(0..MACHINES),
                    ms: random.random_range(100..20_000),
                },
            )),
            15 => acts.extend([
                (at, Act::DiskDelay { ms: random.random_range(50..3_000) }),
                (until(random, 6_000), Act::DiskDelay { ms: 0 }),
            ]),
            16 => acts.extend([
                (at, Act::DiskFull { is_full: true }),
                (until(random, 5_000), Act::DiskFull { is_full: false }),
            ]),
            17 => acts.push((at, Act::AnswersLost { count: random.random_range(1..4) })),
            18 => acts.push((at, Act::DiskBroken)),
            20 | 21 => acts.extend([
                (at, Act::Owner { machine, is_there: true }),
                (until(random, 12_000), Act::Owner { machine, is_there: false }),
            ]),
            19 if random.random_bool(0.5) => acts.push((at, Act::TrainerCrash { machine })),
            // A trainer that nothing but its agent can end: then agents are not killed.
            _ if !acts.iter().any(|(_, act)| matches!(act, Act::KillAgent { .. })) => {
                is_deaf = true;
                acts.push((at, Act::TrainerDeaf { machine }));
            }
            _ => {}
        }
    }
    acts
}

/// Messages take at most so many milliseconds when nothing is wrong.
pub(crate) const LATENCY_MAX_MS: u64 = 20;

fn ms(random: &mut SmallRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}
