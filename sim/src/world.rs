//! The simulation: hosts, network, time, and the plan carried out step by step.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, anyhow};
use hatchery_agent::{AgentSettings, AvailabilitySettings, PeerSettings};
use hatchery_common::{id::Name, tls::JoinString};
use hatchery_coordinator::CoordinatorSettings;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{sync::oneshot, time::sleep};
use tokio_util::sync::CancellationToken;
use turmoil::Sim;

use crate::{
    check, clock,
    coordinator::{CoordinatorPlatform, Disk},
    entropy,
    history::{History, lock},
    machine::Machine,
    people::People,
    plan::{AGENTS, Act, COORDINATOR, HEALED_AT, LATENCY_MAX_MS, MACHINES, PEOPLE, Plan},
};

/// The simulation's step: what happens within one does so on one host after the other.
const TICK: Duration = Duration::from_millis(20);
/// How long messages take at least, in milliseconds.
const LATENCY_MIN_MS: u64 = 1;
/// How fast the network recovers from a lost message.
const REPAIR_RATE: f64 = 0.9;
/// Segments under way on one connection.
const TCP_SEGMENTS_MAX: usize = 4096;
const PORT: u16 = 4747;
const LEASE_SECS: u64 = 3;
/// Once nothing goes wrong any more, all jobs are over within this time.
const SETTLES_WITHIN: Duration = Duration::from_mins(2);
/// How often acknowledged checkpoints and the end are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// What ends by itself starts again after this.
const STARTS_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Time of a trainer's step, in milliseconds.
const STEP_EVERY_MS: (u64, u64) = (100, 250);

/// Everything of one run.
pub(crate) struct World {
    pub(crate) folder: PathBuf,
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) is_quiet: bool,
    machines: Vec<Machine>,
    disk: Arc<Mutex<Disk>>,
    stops: [Stop; AGENTS + 1],
    are_people_done: Arc<AtomicBool>,
    plan: Plan,
}

/// Ends a machine's software in good order.
type Stop = Arc<Mutex<CancellationToken>>;

impl World {
    /// A world in an empty folder.
    pub(crate) fn new(seed: u64, folder: &Path) -> io::Result<Self> {
        let history = Arc::new(Mutex::new(History::default()));
        let mut random = SmallRng::seed_from_u64(seed);
        let plan = Plan::draw(seed, &mut random);
        let program = folder.join("trainer");
        std::fs::write(&program, "a simulated trainer")?;
        let machines = (1..=AGENTS)
            .map(|number| {
                let step_every = Duration::from_millis(random.random_range(STEP_EVERY_MS.0..STEP_EVERY_MS.1));
                Machine::new(number, program.clone(), step_every, Arc::clone(&history))
            })
            .collect();
        Ok(Self {
            folder: folder.to_owned(),
            history,
            is_quiet: plan.is_quiet,
            machines,
            disk: Arc::default(),
            stops: std::array::from_fn(|_| Arc::default()),
            are_people_done: Arc::default(),
            plan,
        })
    }

    /// Runs from `seed` to the end, or until it takes too long. What went wrong stands in the history.
    pub(crate) fn run(&self, seed: u64) {
        entropy::seed(seed);
        clock::start(MACHINES);
        for (machine, ppm) in self.plan.drift_ppm.iter().enumerate() {
            clock::skew(machine, |skew| skew.drift_ppm = *ppm);
        }
        if let Err(error) = check::simulated_functions_are_in_place() {
            lock(&self.history).problem(error.to_string());
            return;
        }
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(LATENCY_MIN_MS))
            .max_message_latency(Duration::from_millis(LATENCY_MAX_MS))
            .repair_rate(REPAIR_RATE)
            .tcp_capacity(TCP_SEGMENTS_MAX)
            .simulation_duration(HEALED_AT + SETTLES_WITHIN * 2)
            .build();
        self.add_hosts(seed, &mut sim);
        let mut acts = self.plan.acts.iter().peekable();
        let mut now = Duration::ZERO;
        loop {
            while let Some((_, act)) = acts.next_if(|(at, _)| *at <= now) {
                lock(&self.history).note(format_args!("{act:?}"));
                self.carry_out(*act, &mut sim);
            }
            if now == HEALED_AT {
                lock(&self.history).note(format_args!("healed"));
                self.heal(&mut sim);
            }
            if let Err(error) = sim.step() {
                lock(&self.history).problem(format!("a host has failed: {error}"));
                return;
            }
            now += TICK;
            clock::advance_to(now);
            self.machines.iter().for_each(Machine::advance);
            if now.as_millis().is_multiple_of(LOOK_EVERY.as_millis()) {
                check::acknowledged_checkpoints(self);
                if now >= HEALED_AT && self.is_over() {
                    return;
                }
            }
            if now > HEALED_AT + SETTLES_WITHIN {
                check::what_is_unfinished(self);
                return;
            }
        }
    }

    fn add_hosts(&self, seed: u64, sim: &mut Sim<'_>) {
        let platform =
            CoordinatorPlatform { disk: Arc::clone(&self.disk), history: Arc::clone(&self.history) };
        let (home, stop) = (self.folder.clone(), Arc::clone(&self.stops[COORDINATOR]));
        sim.host(host(COORDINATOR), move || {
            let (platform, home, stop) = (platform.clone(), home.clone(), Arc::clone(&stop));
            async move { Ok(run_coordinator(platform, home, stop).await?) }
        });
        let joins = Arc::new(Mutex::new(std::array::from_fn(|_| None)));
        for machine in &self.machines {
            let agent = AgentHost {
                machine: machine.clone(),
                folder: self.folder.join(host(machine.number)),
                joins: Arc::clone(&joins),
                stop: Arc::clone(&self.stops[machine.number]),
                history: Arc::clone(&self.history),
            };
            sim.host(host(machine.number), move || {
                let agent = agent.clone();
                async move { Ok(agent.run().await?) }
            });
        }
        let people = People {
            seed,
            address: format!("{}:{PORT}", coordinator_ip(sim)),
            client: self.folder.join("client"),
            folder: self.folder.join("people"),
            joins,
            history: Arc::clone(&self.history),
            are_done: Arc::clone(&self.are_people_done),
        };
        sim.host(host(PEOPLE), move || {
            let people = people.clone();
            async move { Ok(people.act().await?) }
        });
    }

    fn carry_out(&self, act: Act, sim: &mut Sim<'_>) {
        let coordinator = host(COORDINATOR);
        match act {
            Act::Cut { machine } => sim.partition(host(machine), coordinator),
            Act::CutFrom { machine } => sim.partition_oneway(host(machine), coordinator),
            Act::CutTo { machine } => sim.partition_oneway(coordinator, host(machine)),
            Act::Hold { machine } => sim.hold(host(machine), coordinator),
            Act::Release { machine } => sim.release(host(machine), coordinator),
            Act::Mend { machine } => sim.repair(host(machine), coordinator),
            Act::Latency { max_ms } => sim.set_max_message_latency(Duration::from_millis(max_ms)),
            Act::Loss { per_mille } => sim.set_fail_rate(f64::from(per_mille) / 1000.0),
            Act::KillCoordinator => sim.crash(coordinator),
            Act::StopCoordinator => lock(&self.stops[COORDINATOR]).cancel(),
            Act::KillAgent { machine } => self.machine(machine).agent_crashes(|| sim.crash(host(machine))),
            Act::PowerOff { machine } => {
                self.machine(machine).power_off();
                sim.crash(host(machine));
            }
            Act::Start { machine } => {
                if !sim.is_host_running(host(machine)) {
                    sim.bounce(host(machine));
                }
            }
            Act::StopAgent { machine } => lock(&self.stops[machine]).cancel(),
            Act::WallJump { machine, ms } => clock::skew(machine, |skew| skew.wall_ahead_ms += ms),
            Act::BootJump { machine, ms } => clock::skew(machine, |skew| skew.boot_ahead_ms += ms),
            Act::DiskDelay { ms } => lock(&self.disk).delay = Duration::from_millis(ms),
            Act::DiskFull { is_full } => lock(&self.disk).full = is_full,
            Act::AnswersLost { count } => lock(&self.disk).answers_lost += count,
            Act::DiskBroken => lock(&self.disk).broken = true,
            Act::TrainerCrash { machine } => self.machine(machine).trainer_crashes(),
            Act::TrainerDeaf { machine } => self.machine(machine).trainer_turns_deaf(),
            Act::Owner { machine, is_there } => self.machine(machine).owner_is_there(is_there),
        }
    }

    /// Everything that was broken is whole; clocks that have jumped stay where they are.
    fn heal(&self, sim: &mut Sim<'_>) {
        self.carry_out(Act::Latency { max_ms: LATENCY_MAX_MS }, sim);
        self.carry_out(Act::Loss { per_mille: 0 }, sim);
        *lock(&self.disk) = Disk::default();
        for machine in 1..=PEOPLE {
            self.carry_out(Act::Release { machine }, sim);
            self.carry_out(Act::Mend { machine }, sim);
        }
        for machine in 0..=AGENTS {
            self.carry_out(Act::Start { machine }, sim);
        }
        self.machines.iter().for_each(|machine| machine.owner_is_there(false));
    }

    fn machine(&self, number: usize) -> &Machine {
        &self.machines[number - 1]
    }

    fn is_over(&self) -> bool {
        let history = lock(&self.history);
        self.are_people_done.load(Ordering::Relaxed)
            && history.cluster.jobs.values().all(|job| job.phase.is_terminal())
            && history.lives.iter().all(|life| life.ended.is_some())
    }
}

/// A machine's host name.
pub(crate) fn host(machine: usize) -> String {
    match machine {
        COORDINATOR => "coordinator".to_owned(),
        PEOPLE => "people".to_owned(),
        number => format!("machine-{number}"),
    }
}

fn coordinator_ip(sim: &Sim<'_>) -> IpAddr {
    sim.lookup(host(COORDINATOR))
}

/// The coordinator, started again whenever it ends, as a service manager does.
async fn run_coordinator(platform: CoordinatorPlatform, home: PathBuf, stop: Stop) -> Result<()> {
    clock::enter(COORDINATOR);
    loop {
        let shutdown = CancellationToken::new();
        *lock(&stop) = shutdown.clone();
        let settings = CoordinatorSettings {
            listen: format!("0.0.0.0:{PORT}"),
            advertise: vec![turmoil::lookup(host(COORDINATOR)).to_string()],
            lease_secs: LEASE_SECS,
            disk_free_bytes_min: 0,
            ..CoordinatorSettings::default()
        };
        let (on_ready, _) = oneshot::channel();
        let ended = hatchery_coordinator::run_on(&platform, settings.check(&home)?, shutdown, on_ready).await;
        lock(&platform.history).note(format_args!("the coordinator has ended: {}", outcome(ended)));
        sleep(STARTS_AGAIN_AFTER).await;
    }
}

/// How a host's software ended. What an error says names folders, which are others in each run.
fn outcome<E>(ended: Result<(), E>) -> &'static str {
    if ended.is_ok() { "in good order" } else { "with an error" }
}

/// An agent, started again whenever it ends.
#[derive(Clone)]
struct AgentHost {
    machine: Machine,
    folder: PathBuf,
    joins: Arc<Mutex<[Option<JoinString>; AGENTS]>>,
    stop: Stop,
    history: Arc<Mutex<History>>,
}

impl AgentHost {
    async fn run(self) -> Result<()> {
        let number = self.machine.number;
        clock::enter(number);
        let settings = AgentSettings {
            state: self.folder.clone(),
            name: Some(Name::from_lossy(&host(number))),
            free_disk_bytes_min: 0,
            cpu_threads: 1,
            availability: AvailabilitySettings { owner_idle_secs_min: Some(60), ..Default::default() },
            peers: PeerSettings {
                listen: "0.0.0.0:0".to_owned(),
                advertise: vec![turmoil::lookup(host(number)).to_string()],
                ..PeerSettings::default()
            },
            ..AgentSettings::default()
        };
        let credentials = match hatchery_agent::load_credentials(&settings)? {
            Some(credentials) => credentials,
            None => loop {
                let join = lock(&self.joins)[number - 1].clone();
                if let Some(join) = join {
                    let joined = hatchery_agent::join_on(&self.machine, &join, &settings).await;
                    break joined
                        .map_err(|error| anyhow!("nothing goes wrong at the start: {error}"))?
                        .credentials;
                }
                sleep(Duration::from_millis(100)).await;
            },
        };
        loop {
            let shutdown = CancellationToken::new();
            *lock(&self.stop) = shutdown.clone();
            let ground = Arc::new(self.machine.clone());
            let ended = hatchery_agent::run_on(
                ground,
                settings.clone(),
                credentials.clone(),
                shutdown.cancelled_owned(),
            )
            .await;
            lock(&self.history)
                .note(format_args!("the agent of machine {number} has ended: {}", outcome(ended)));
            sleep(STARTS_AGAIN_AFTER).await;
        }
    }
}
