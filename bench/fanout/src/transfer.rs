//! One transfer from a source to all receivers, watched from its barrier to its last byte.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use hatchery_test_support::Interrupt;

use super::network::Network;
use super::processor::{self, Machine, Taken};

/// How often a running transfer is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A contender that is ready to begin: everything runs, nothing is on its way. Receivers are machines 1 to N.
pub(super) trait Transfer {
    /// The bytes that each receiver is to get.
    fn bytes(&self) -> u64;

    /// Lets all receivers begin at once. Gives the moment, in seconds since 1970.
    fn begin(&mut self) -> Result<f64>;

    /// When each receiver had every byte, verified, in seconds since 1970. An error if one cannot get them any more.
    fn finished(&mut self) -> Result<Vec<Option<f64>>>;

    /// The processes that run now: the source's first.
    fn processes(&self) -> Vec<u32>;
}

/// What happens to a transfer on its way.
pub(super) trait Disturbance {
    /// Called again and again with the seconds since the barrier.
    fn look(&mut self, secs: f64) -> Result<()>;
}

pub(super) struct Undisturbed;

impl Disturbance for Undisturbed {
    fn look(&mut self, _secs: f64) -> Result<()> {
        Ok(())
    }
}

/// What a transfer came to.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// The bytes that each receiver got.
    pub(super) bytes: u64,
    /// Seconds from the barrier until each receiver had all; none: it was not waited for and had not.
    pub(super) secs: Vec<Option<f64>>,
    /// Bytes that left the source's machine.
    pub(super) source_bytes: u64,
    /// What the source's process took.
    pub(super) source_processor: Taken,
    /// What all processes took together.
    pub(super) processor: Taken,
    /// The part of the machine's time that was idle.
    pub(super) idle_share: f64,
}

impl Run {
    /// The seconds of the receivers that are counted, machines by number.
    pub(super) fn secs_of(&self, counts: impl Fn(usize) -> bool) -> Vec<f64> {
        let numbered = self.secs.iter().enumerate().filter(|(index, _)| counts(index + 1));
        numbered.filter_map(|(_, secs)| *secs).collect()
    }

    /// Processor seconds for each GB (10^9 bytes) delivered.
    pub(super) fn processor_secs_per_gb(&self) -> f64 {
        let delivered = self.secs.iter().flatten().count() as f64 * self.bytes as f64;
        self.processor.secs() / (delivered / 1e9)
    }
}

/// How long a transfer may take, and for whom nobody waits.
pub(super) struct Terms<'a> {
    pub(super) secs_max: f64,
    pub(super) lost: &'a BTreeSet<usize>,
    pub(super) interrupt: &'a Interrupt,
}

/// Runs a transfer to its end.
pub(super) fn measure(
    transfer: &mut dyn Transfer,
    network: &Network,
    disturbance: &mut dyn Disturbance,
    terms: &Terms,
) -> Result<Run> {
    let before = take(&transfer.processes());
    let (children_before, machine_before) = (processor::of_children()?, Machine::now()?);
    let sent_before = network.sent_bytes(0)?;
    let watch = Instant::now();
    let begun = transfer.begin()?;
    let finished = loop {
        let finished = transfer.finished()?;
        let waits =
            |(index, done): (usize, &Option<f64>)| done.is_none() && !terms.lost.contains(&(index + 1));
        if !finished.iter().enumerate().any(waits) {
            break finished;
        }
        disturbance.look(now() - begun)?;
        terms.interrupt.check()?;
        if watch.elapsed().as_secs_f64() > terms.secs_max {
            let missing: Vec<usize> =
                finished.iter().enumerate().filter(|one| waits(*one)).map(|one| one.0 + 1).collect();
            bail!("after {:.0} s these receivers are not through: {missing:?}", terms.secs_max);
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let pids = transfer.processes();
    let since = |pids: &[u32]| pids.iter().map(|pid| of_process_since(*pid, &before)).sum::<Taken>();
    Ok(Run {
        bytes: transfer.bytes(),
        secs: finished.into_iter().map(|done| done.map(|at| at - begun)).collect(),
        source_bytes: network.sent_bytes(0)? - sent_before,
        source_processor: since(&pids[..1]),
        processor: [since(&pids), processor::of_children()?.since(children_before)].into_iter().sum(),
        idle_share: Machine::now()?.idle_share_since(machine_before),
    })
}

fn take(pids: &[u32]) -> HashMap<u32, Taken> {
    pids.iter().filter_map(|pid| Some((*pid, processor::of_process(*pid)?))).collect()
}

/// What a process took since then. One that is new had taken nothing; one that is gone does not count.
fn of_process_since(pid: u32, before: &HashMap<u32, Taken>) -> Taken {
    let before = before.get(&pid).copied().unwrap_or_default();
    processor::of_process(pid).map(|now| now.since(before)).unwrap_or_default()
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |passed| passed.as_secs_f64())
}

/// A moment that a program has written into a file, in nanoseconds since 1970; none: not yet.
pub(super) fn moment(text: &str) -> Option<f64> {
    let nanoseconds: u64 = text.strip_suffix('\n')?.trim().parse().ok()?;
    Some(nanoseconds as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_counts_once_its_line_is_whole() {
        assert_eq!(moment("1500000000\n"), Some(1.5));
        assert_eq!(moment("15000"), None);
        assert_eq!(moment(""), None);
    }
}
