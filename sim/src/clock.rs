//! Time: the true one, which only the simulator knows, and each machine's two clocks, which jump and drift.

use std::{cell::RefCell, time::Duration};

use hatchery_common::time::BootTime;
use tokio::{
    runtime::{self, Handle},
    time::Instant,
};

/// Where the wall clocks stand at the start, since 1970: 2030-01-01.
const WALL_START: Duration = Duration::from_hours(525_960);
/// Where the boot clocks stand at the start.
const BOOT_START: Duration = Duration::from_secs(100_000);

thread_local! {
    static CLOCKS: RefCell<Option<Clocks>> = const { RefCell::new(None) };
}

/// How a machine's clocks differ from the true time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Skew {
    /// How much the clocks gain, in millionths.
    pub(crate) drift_ppm: i64,
    /// How far the wall clock is ahead, beside the drift, in milliseconds.
    pub(crate) wall_ahead_ms: i64,
    /// How far the boot clock has jumped ahead, as over a suspension, in milliseconds.
    pub(crate) boot_ahead_ms: u64,
}

struct Clocks {
    /// The true time at the last step of the simulation.
    now: Duration,
    machines: Vec<Skew>,
    hosts: Vec<Host>,
}

/// A machine's software that runs: its own time is finer than the simulation's steps.
struct Host {
    runtime: runtime::Id,
    machine: usize,
    entered: Instant,
    entered_at: Duration,
}

/// From here on this thread's time is simulated, for so many machines.
pub(crate) fn start(machines: usize) {
    let clocks = Clocks { now: Duration::ZERO, machines: vec![Skew::default(); machines], hosts: Vec::new() };
    CLOCKS.set(Some(clocks));
}

/// The simulation has come so far.
pub(crate) fn advance_to(now: Duration) {
    with(|clocks| clocks.now = now);
}

/// The software that calls this runs on `machine`.
pub(crate) fn enter(machine: usize) {
    let (runtime, entered) = (Handle::current().id(), Instant::now());
    with(|clocks| {
        clocks.hosts.retain(|host| host.machine != machine && host.runtime != runtime);
        clocks.hosts.push(Host { runtime, machine, entered, entered_at: clocks.now });
    });
}

/// Changes how a machine's clocks go.
pub(crate) fn skew(machine: usize, change: impl FnOnce(&mut Skew)) {
    with(|clocks| change(&mut clocks.machines[machine]));
}

/// The true time since the start.
pub(crate) fn now() -> Duration {
    read(|clocks| clocks.now_and_machine().0).unwrap_or_default()
}

/// The boot clock of `machine`.
pub(crate) fn boot_of(machine: usize) -> BootTime {
    let since = read(|clocks| clocks.boot(clocks.now_and_machine().0, machine)).unwrap_or_default();
    BootTime(since.as_millis() as u64)
}

/// The wall clock of the machine whose software runs; the true one for the simulator. None: nothing is simulated.
pub(crate) fn wall() -> Option<Duration> {
    read(|clocks| match clocks.now_and_machine() {
        (now, Some(machine)) => {
            let skew = clocks.machines[machine];
            drifted(WALL_START + now, now, skew.drift_ppm, skew.wall_ahead_ms)
        }
        (now, None) => WALL_START + now,
    })
}

/// The same for the boot clock.
pub(crate) fn boot() -> Option<Duration> {
    read(|clocks| match clocks.now_and_machine() {
        (now, Some(machine)) => clocks.boot(now, machine),
        (now, None) => BOOT_START + now,
    })
}

impl Clocks {
    fn boot(&self, now: Duration, machine: usize) -> Duration {
        let skew = self.machines[machine];
        drifted(BOOT_START + now, now, skew.drift_ppm, skew.boot_ahead_ms as i64)
    }

    fn now_and_machine(&self) -> (Duration, Option<usize>) {
        let runtime = Handle::try_current().ok().map(|handle| handle.id());
        match self.hosts.iter().find(|host| Some(host.runtime) == runtime) {
            // The runtime's own clock stands still but for what it is told: this does not ask the system again.
            Some(host) => (host.entered_at + host.entered.elapsed(), Some(host.machine)),
            None => (self.now, None),
        }
    }
}

fn drifted(base: Duration, elapsed: Duration, ppm: i64, ahead_ms: i64) -> Duration {
    let gained = elapsed.as_nanos() as i64 / 1_000_000 * ppm + ahead_ms * 1_000_000;
    let size = Duration::from_nanos(gained.unsigned_abs());
    if gained < 0 { base.saturating_sub(size) } else { base + size }
}

fn with(change: impl FnOnce(&mut Clocks)) {
    CLOCKS.with_borrow_mut(|clocks| change(clocks.as_mut().expect("the thread simulates")));
}

fn read<T>(read: impl FnOnce(&Clocks) -> T) -> Option<T> {
    let value =
        CLOCKS.try_with(|clocks| clocks.try_borrow().ok().and_then(|clocks| clocks.as_ref().map(read)));
    // A thread that ends has none any more.
    value.ok().flatten()
}
