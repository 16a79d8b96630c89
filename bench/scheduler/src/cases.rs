//! Cases: small fleets and queues, drawn so that a case's name says all about it.

use std::{fmt, str::FromStr};

use hatchery_common::{device::DeviceKind, digest::Digest};
use serde::{Serialize, Serializer};

/// Steps per second of the reference run: on a CUDA card of the middle class, on an Apple GPU, on a small
/// processor.
pub(crate) const TRIPLE_STEPS_PER_SEC: [(DeviceKind, f64); 3] =
    [(DeviceKind::Cuda, 27.8), (DeviceKind::Mps, 3.09), (DeviceKind::Cpu, 0.3)];
/// Lengths of jobs, in steps of the reference run: from 4 s to an hour on the CUDA card of the triple.
const STEPS: (f64, f64) = (100.0, 100_000.0);
/// Speeds of random devices.
const STEPS_PER_SEC: (f64, f64) = (0.03, 30.0);
/// What a device truly does of what its calibration says, where that surprises.
const SURPRISE: (f64, f64) = (0.5, 2.0);
/// In what time the jobs arrive, of the time that the whole fleet needs for them at the least.
const ARRIVALS_SPREAD: (f64, f64) = (0.3, 3.0);

/// Which devices there are, and how many jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FleetShape {
    /// One CUDA card, one Apple GPU, one processor; 1 to 10 jobs.
    Triple,
    /// Two of each; 1 to 10 jobs.
    DoubleTriple,
    /// 2 to 5 devices of any kind and speed; 1 to 10 jobs.
    Random,
    /// 6 to 12 devices of any kind and speed; 20 to 60 jobs: too many for a search.
    Large,
}

impl FleetShape {
    const ALL: [(&str, Self); 4] = [
        ("triple", Self::Triple),
        ("triple-x2", Self::DoubleTriple),
        ("random", Self::Random),
        ("large", Self::Large),
    ];

    /// Cases of this shape where others have `cases`: large ones take longer.
    pub(crate) fn cases(self, cases: u64) -> u64 {
        if self == Self::Large { cases.div_ceil(5) } else { cases }
    }
}

/// A family of cases. Its name is the shape of the fleet and what is added:
/// `triple+wishes+arrivals+surprises`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) shape: FleetShape,
    /// Half of the jobs wish for kinds of device.
    pub(crate) wishes: bool,
    /// The jobs arrive one by one; otherwise all are there at the start.
    pub(crate) arrivals: bool,
    /// The devices are up to twice as fast or as slow as they were measured.
    pub(crate) surprises: bool,
}

impl Family {
    pub(crate) fn all() -> Vec<Self> {
        let with = |shape| {
            (0..8_u8).map(move |bits| Self {
                shape,
                wishes: bits & 1 > 0,
                arrivals: bits & 2 > 0,
                surprises: bits & 4 > 0,
            })
        };
        FleetShape::ALL.into_iter().flat_map(|(_, shape)| with(shape)).collect()
    }

    pub(crate) fn case(self, number: u64) -> Case {
        let name = CaseName { family: self, number };
        let mut dice = Dice { seed: name.to_string(), drawn: 0 };
        let devices = self.devices(&mut dice);
        let jobs = self.jobs(&devices, &mut dice);
        let durations_ms = jobs.iter().map(|job| devices.iter().map(|on| on.duration_ms(job)).collect());
        Case { name, durations_ms: durations_ms.collect(), devices, jobs }
    }

    fn devices(self, dice: &mut Dice) -> Vec<CaseDevice> {
        let random = |dice: &mut Dice, least, most| {
            let count = dice.between(least, most);
            let one = |_| (*dice.pick(&DeviceKind::ALL), dice.log_uniform(STEPS_PER_SEC));
            (0..count).map(one).collect()
        };
        let mut speeds: Vec<(DeviceKind, f64)> = match self.shape {
            FleetShape::Triple => TRIPLE_STEPS_PER_SEC.to_vec(),
            FleetShape::DoubleTriple => [TRIPLE_STEPS_PER_SEC, TRIPLE_STEPS_PER_SEC].concat(),
            FleetShape::Random => random(dice, 2, 5),
            FleetShape::Large => random(dice, 6, 12),
        };
        dice.shuffle(&mut speeds);
        let device = |(kind, known_steps_per_sec)| {
            let surprise = if self.surprises { dice.log_uniform(SURPRISE) } else { 1.0 };
            CaseDevice { kind, known_steps_per_sec, true_steps_per_sec: known_steps_per_sec * surprise }
        };
        speeds.into_iter().map(device).collect()
    }

    fn jobs(self, devices: &[CaseDevice], dice: &mut Dice) -> Vec<CaseJob> {
        let count = if self.shape == FleetShape::Large { dice.between(20, 60) } else { dice.between(1, 10) };
        let steps: Vec<u64> = (0..count).map(|_| dice.log_uniform(STEPS).round() as u64).collect();
        let fleet_steps_per_sec: f64 = devices.iter().map(|device| device.true_steps_per_sec).sum();
        let least_secs = steps.iter().sum::<u64>() as f64 / fleet_steps_per_sec;
        let spread_ms = 1000.0 * least_secs * dice.log_uniform(ARRIVALS_SPREAD);
        let mut submitted_ms = vec![0; steps.len()];
        if self.arrivals {
            submitted_ms[1..].fill_with(|| (dice.unit() * spread_ms) as u64);
            submitted_ms.sort_unstable();
        }
        let job = |(submitted_ms, steps)| {
            let kinds = if self.wishes && dice.unit() < 0.5 { wished(devices, dice) } else { Vec::new() };
            CaseJob { submitted_ms, steps, kinds }
        };
        submitted_ms.into_iter().zip(steps).map(job).collect()
    }
}

/// One or two kinds that the fleet has.
fn wished(devices: &[CaseDevice], dice: &mut Dice) -> Vec<DeviceKind> {
    let mut kinds: Vec<DeviceKind> = (0..dice.between(1, 2)).map(|_| dice.pick(devices).kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = FleetShape::ALL.into_iter().find(|(_, shape)| *shape == self.shape);
        let mut name = shape.map_or("", |(name, _)| name).to_owned();
        for (is_so, word) in
            [(self.wishes, "+wishes"), (self.arrivals, "+arrivals"), (self.surprises, "+surprises")]
        {
            name.push_str(if is_so { word } else { "" });
        }
        f.pad(&name)
    }
}

/// A family and a number in it: `triple+wishes/17`. Everything about the case follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CaseName {
    pub(crate) family: Family,
    pub(crate) number: u64,
}

impl fmt::Display for CaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.family, self.number)
    }
}

impl Serialize for CaseName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for CaseName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (family, number) =
            text.split_once('/').ok_or("a case is written FAMILY/NUMBER, as in triple/17")?;
        let known = Family::all();
        let family = known.iter().find(|known| known.to_string() == family).ok_or_else(|| {
            let names: Vec<_> = known.iter().map(Family::to_string).collect();
            format!("there is no family {family:?}; there are {}", names.join(", "))
        })?;
        let number = number.parse().map_err(|_| format!("{number:?} is no number"))?;
        Ok(Self { family: *family, number })
    }
}

/// A fleet and what is asked of it.
#[derive(Serialize)]
pub(crate) struct Case {
    pub(crate) name: CaseName,
    /// In the order in which they joined.
    pub(crate) devices: Vec<CaseDevice>,
    /// In the order in which they are submitted.
    pub(crate) jobs: Vec<CaseJob>,
    /// For each job and device, how long it truly takes; none: the job wishes otherwise.
    pub(crate) durations_ms: Vec<Vec<Option<u64>>>,
}

#[derive(Serialize)]
pub(crate) struct CaseDevice {
    pub(crate) kind: DeviceKind,
    pub(crate) known_steps_per_sec: f64,
    pub(crate) true_steps_per_sec: f64,
}

#[derive(Serialize)]
pub(crate) struct CaseJob {
    pub(crate) submitted_ms: u64,
    pub(crate) steps: u64,
    /// Kinds of device wished for; empty: any.
    pub(crate) kinds: Vec<DeviceKind>,
}

impl CaseDevice {
    fn duration_ms(&self, job: &CaseJob) -> Option<u64> {
        let suits = job.kinds.is_empty() || job.kinds.contains(&self.kind);
        suits.then(|| (1000.0 * job.steps as f64 / self.true_steps_per_sec).ceil() as u64)
    }
}

/// Draws that follow from a seed: digests of it and a count.
pub(crate) struct Dice {
    pub(crate) seed: String,
    pub(crate) drawn: u64,
}

impl Dice {
    /// From 0 to below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        self.drawn += 1;
        let digest = Digest::of(format!("{} {}", self.seed, self.drawn).as_bytes());
        let first = digest.as_bytes().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        (first >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From `least` to `most`, both included.
    fn between(&mut self, least: usize, most: usize) -> usize {
        least + (self.unit() * (most - least + 1) as f64) as usize
    }

    pub(crate) fn log_uniform(&mut self, (least, most): (f64, f64)) -> f64 {
        least * (most / least).powf(self.unit())
    }

    fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.between(0, among.len() - 1)]
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.between(0, last));
        }
    }
}
