//! What goes wrong on the way, and what else must go on meanwhile.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::contenders::Contender;
use super::fleet::{Fleet, Odd, Wish};
use super::floor;
use super::links::rates;
use super::network::{Link, Network};
use super::processor::Taken;
use super::report::{Outcome, largest, mean, quantile};
use super::transfer::{Disturbance, Run, Terms, Undisturbed, measure};
use super::{Bench, GIVE_UP_FLOORS, GIVE_UP_SECS_MIN};

/// Receivers in a scenario.
const NODES: usize = 8;
/// The one to which it happens.
const HURT: usize = 3;
/// How much slower a slow node's link is.
const SLOWER: f64 = 4.0;
/// How long a link is down.
const DOWN_SECS: f64 = 5.0;
/// Receivers where nothing is shaped, and how much each gets.
const UNSHAPED_NODES: usize = 4;
const UNSHAPED_MEGABYTES: u64 = 100;
/// Several times what they write: memory that was touched goes back to the host within a second or two.
const TOUCHED_BYTES: u64 = 2_000_000_000;
/// What a full copy is on the wire, with headers and what else is said meanwhile.
const COPY_WITH_HEADERS: f64 = 1.05;
/// Pieces that have left the source in part and are nowhere whole: one for each of its children, and some to spare. A
/// piece is at most a 256th of the file, and at least so large.
const PIECES_ON_THE_WAY: u64 = 8;
const PIECE_BYTES_MIN: u64 = 64 << 10;
/// The fault point of an agent that serves wrong bytes.
const FLIPS_BYTES: (&str, &str) = ("FAILPOINTS", "peers::flips_a_bit=return");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scenario {
    SlowNode,
    PeerKilled,
    PeerStopped,
    LinkDown,
    SourceDies,
    Joiner,
    FlippedBytes,
    Heartbeats,
    Unshaped,
}

impl Scenario {
    pub(super) const ALL: [Self; 9] = [
        Self::SlowNode,
        Self::PeerKilled,
        Self::PeerStopped,
        Self::LinkDown,
        Self::SourceDies,
        Self::Joiner,
        Self::FlippedBytes,
        Self::Heartbeats,
        Self::Unshaped,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::SlowNode => "one of 8 at a quarter of the rate",
            Self::PeerKilled => "SIGKILL of a peer at half",
            Self::PeerStopped => "SIGSTOP of a peer at half",
            Self::LinkDown => "a peer's link down for 5 s",
            Self::SourceDies => "source dead after a full copy",
            Self::Joiner => "a joiner at half",
            Self::FlippedBytes => "a peer flips bytes",
            Self::Heartbeats => "heartbeats meanwhile",
            Self::Unshaped => "loopback, nothing shaped",
        }
    }

    /// Why it cannot be run with this contender; none: it can.
    pub(super) fn lacks(self, contender: Contender, flipping: Option<&Path>) -> Option<&'static str> {
        match (self, contender) {
            (_, Contender::Rsync | Contender::Aria2) => Some("scenarios are for Hatchery's own"),
            (Self::SourceDies, Contender::Star) => Some("a star without its source never ends"),
            (Self::FlippedBytes, Contender::Star) => Some("nobody but the source serves anything"),
            (Self::FlippedBytes, _) if flipping.is_none() => {
                Some("give `--flipping-agent` a `hatchery` that was built with the feature failpoints")
            }
            _ => None,
        }
    }

    fn links(self, mbit: f64) -> Vec<Link> {
        match self {
            Self::Unshaped => vec![Link(None); UNSHAPED_NODES + 1],
            Self::SlowNode => {
                let link = |machine| Link::mbit(if machine == HURT { mbit / SLOWER } else { mbit });
                (0..=NODES).map(link).collect()
            }
            _ => vec![Link::mbit(mbit); NODES + 1],
        }
    }

    /// Those that never get the file, and are not waited for.
    fn lost(self) -> BTreeSet<usize> {
        if matches!(self, Self::PeerKilled | Self::PeerStopped) {
            BTreeSet::from([HURT])
        } else {
            BTreeSet::new()
        }
    }

    pub(super) fn run(
        self,
        bench: &Bench,
        contender: Contender,
        megabytes: u64,
        seed: u64,
    ) -> Result<Outcome> {
        let network = Network::build(&self.links(bench.options.rate_mbit))?;
        let late = if self == Self::Joiner { BTreeSet::from([HURT]) } else { BTreeSet::new() };
        let odd = bench.options.flipping_agent.as_deref().filter(|_| self == Self::FlippedBytes);
        let megabytes = if self == Self::Unshaped { UNSHAPED_MEGABYTES } else { megabytes };
        let wish = Wish {
            megabytes,
            seed,
            peers: contender == Contender::Swarm,
            late: &late,
            trains: None,
            odd: odd.map(|program| Odd { machine: HURT, program, variable: FLIPS_BYTES }),
        };
        let fleet = Fleet::start(&network, &bench.programs, &bench.interrupt, &wish)?;
        let floors = floors(bench, &network, megabytes as f64 * 1e6, contender);
        let probe = if self == Self::Heartbeats { Some(fleet.probe(HURT)?) } else { None };
        let joined = Cell::new(f64::NAN);
        let on_the_way = PIECES_ON_THE_WAY * (megabytes * 1_000_000 / 256).max(PIECE_BYTES_MIN);
        let copy = (megabytes as f64 * 1e6 * COPY_WITH_HEADERS) as u64;
        let dies_at_bytes = network.sent_bytes(0)? + copy + on_the_way;
        let mut event = Event {
            scenario: self,
            fleet: &fleet,
            network: &network,
            floors,
            stage: 0,
            at: f64::NAN,
            joined: &joined,
            dies_at_bytes,
        };
        let lost = self.lost();
        let secs_max = (floors.others.max(floors.hurt) * GIVE_UP_FLOORS).max(GIVE_UP_SECS_MIN);
        let terms = Terms { secs_max, lost: &lost, interrupt: &bench.interrupt };
        let calm = matches!(self, Self::SlowNode | Self::FlippedBytes | Self::Heartbeats | Self::Unshaped);
        let disturbance: &mut dyn Disturbance = if calm { &mut Undisturbed } else { &mut event };
        let plain = match self {
            Self::Unshaped => fleet.touch_memory(TOUCHED_BYTES)?,
            _ => Taken::default(),
        };
        let run = measure(&mut &fleet, &network, disturbance, &terms)?;
        let mut figures = self.figures(&run, floors, joined.get(), plain);
        if let Some((probe, log)) = probe {
            drop(probe);
            figures.extend(round_trips(&std::fs::read_to_string(log)?, fleet.sessions_lost())?);
        }
        Ok(Outcome { scenario: self.name().to_owned(), contender: contender.name(), figures })
    }

    fn figures(self, run: &Run, floors: Floors, joined: f64, plain: Taken) -> Vec<(&'static str, f64)> {
        let gb = run.secs.iter().flatten().count() as f64 * run.bytes as f64 / 1e9;
        if self == Self::Unshaped {
            let receivers = run.processor.since(run.source_processor);
            return vec![
                ("CPU s/GB", run.processor_secs_per_gb()),
                ("of it source", run.source_processor.secs() / gb),
                ("receivers", receivers.secs() / gb),
                ("user", run.processor.user_secs / gb),
                ("system", run.processor.system_secs / gb),
                ("a plain write", plain.secs() / TOUCHED_BYTES as f64 * 1e9),
                ("s in all", largest(&run.secs_of(|_| true))),
            ];
        }
        let others = run.secs_of(|machine| machine != HURT);
        let mut figures = vec![
            ("others' last/floor", largest(&others) / floors.others),
            ("mean/floor", mean(&others) / floors.others),
        ];
        let hurt = run.secs_of(|machine| machine == HURT);
        match (self, hurt.first()) {
            (Self::SlowNode | Self::FlippedBytes, Some(secs)) => {
                figures.push(("its own last/floor", secs / floors.hurt));
            }
            (Self::LinkDown, Some(secs)) => {
                figures.push(("its own last/(floor + 5 s)", secs / (floors.hurt + DOWN_SECS)));
            }
            (Self::Joiner, Some(secs)) => {
                figures.push(("its own last/floor since it came", (secs - joined) / floors.hurt));
            }
            _ => {}
        }
        figures.push(("source/F", run.source_bytes as f64 / run.bytes as f64));
        figures
    }
}

/// The floor of those to whom nothing happens, and of the one to whom it does.
fn floors(bench: &Bench, network: &Network, bytes: f64, contender: Contender) -> Floors {
    let rates = rates(network.links(), bench.options.rate_mbit, bench.goodput);
    let (source, receivers) = (rates[0], &rates[1..]);
    let others: Vec<_> = receivers
        .iter()
        .enumerate()
        .filter(|(index, _)| index + 1 != HURT)
        .map(|(_, rates)| *rates)
        .collect();
    let half_of = if contender.is_star() { receivers.len() as f64 } else { 1.0 };
    let others = floor::secs(bytes, source, &others);
    Floors {
        others,
        hurt: floor::secs(bytes, source, &receivers[HURT - 1..HURT]),
        half: others * half_of / 2.0,
    }
}

#[derive(Clone, Copy)]
struct Floors {
    others: f64,
    hurt: f64,
    /// When it is half over.
    half: f64,
}

/// What happens, at its time.
struct Event<'a, 'f> {
    scenario: Scenario,
    fleet: &'a Fleet<'f>,
    network: &'a Network,
    floors: Floors,
    /// How many parts of it have happened.
    stage: u32,
    /// When the last of them did.
    at: f64,
    joined: &'a Cell<f64>,
    /// A full copy has left the source when it has sent so much.
    dies_at_bytes: u64,
}

impl Event<'_, '_> {
    fn signal(&self, machine: usize, signal: Signal) -> Result<()> {
        let pid = self.fleet.process(machine).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        kill_process(pid.context("it does not run")?, signal).context("it cannot be signalled")
    }

    fn is_due(&self, secs: f64) -> Result<bool> {
        Ok(match (self.scenario, self.stage) {
            (Scenario::SourceDies, 0) => self.network.sent_bytes(0)? >= self.dies_at_bytes,
            (_, 0) => secs >= self.floors.half,
            (Scenario::LinkDown, 1) => secs >= self.at + DOWN_SECS,
            _ => false,
        })
    }
}

impl Disturbance for Event<'_, '_> {
    fn look(&mut self, secs: f64) -> Result<()> {
        if !self.is_due(secs)? {
            return Ok(());
        }
        match self.scenario {
            Scenario::PeerKilled => self.signal(HURT, Signal::KILL)?,
            Scenario::PeerStopped => self.signal(HURT, Signal::STOP)?,
            Scenario::SourceDies => self.signal(0, Signal::KILL)?,
            Scenario::LinkDown => self.network.set_plugged(HURT, self.stage == 1)?,
            Scenario::Joiner => {
                self.fleet.start_late(HURT)?;
                self.joined.set(secs);
            }
            _ => {}
        }
        self.stage += 1;
        self.at = secs;
        Ok(())
    }
}

/// Quantiles of the round trips in a probe's log.
fn round_trips(log: &str, sessions_lost: usize) -> Result<[(&'static str, f64); 4]> {
    let trips: Vec<f64> = log.lines().map(str::parse).collect::<Result<_, _>>().with_context(|| {
        let last = log.lines().last().unwrap_or_default().to_owned();
        format!("the probe's session was lost: {last}")
    })?;
    Ok([
        ("round trips", trips.len() as f64),
        ("p50 ms", quantile(&trips, 0.5)),
        ("p99 ms", quantile(&trips, 0.99)),
        ("sessions lost", sessions_lost as f64),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_tells_its_quantiles_or_that_it_was_lost() {
        let log = (1..=100).map(|ms| format!("{ms}.000")).collect::<Vec<_>>().join("\n");
        let figures = round_trips(&log, 2).unwrap();
        assert_eq!(
            figures,
            [("round trips", 100.0), ("p50 ms", 50.0), ("p99 ms", 99.0), ("sessions lost", 2.0)]
        );
        let error = round_trips("1.000\nError: the session has ended\n", 0).unwrap_err().to_string();
        assert!(error.contains("the session has ended"), "{error}");
    }

    #[test]
    fn names_are_different() {
        let names: BTreeSet<_> = Scenario::ALL.iter().map(|scenario| scenario.name()).collect();
        assert_eq!(names.len(), Scenario::ALL.len());
    }
}
