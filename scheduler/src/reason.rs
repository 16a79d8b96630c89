//! Why jobs wait: for each job of a placement, what it waits for, or why there is no place for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hatchery_common::{availability::Away, id::Name, node::NodeMode};

use crate::{
    cluster::Job,
    placement::Placement,
    slot::{BUSY_SECS_MIN, Needs, Reach, Slot, Unfit},
    speed::{Speed, duration},
    wait::{AwayNode, Fleet, Instead, Wait},
};

impl<'a> Placement<'a> {
    /// What every job waits for; of no use while there are grants.
    pub(crate) fn waits(&self) -> Vec<(&'a Job, Wait)> {
        let mut waits: Vec<_> = self.placeless.iter().map(|job| (*job, self.no_place(job))).collect();
        let free = self.free_slots();
        for (index, slot) in self.slots.iter().enumerate() {
            let mut start_secs = slot.free_in_secs();
            let mut measured = slot.attempt.is_none_or(|left| left.measured);
            for (ahead, job) in self.lines[index].iter().enumerate() {
                let end_secs = start_secs + self.secs(*job, index);
                let about = measured.then(|| duration(start_secs));
                let instead = self.instead(*job, end_secs, &free);
                waits.push((self.jobs[*job], self.wait(slot, ahead, about, instead)));
                measured &= self.speed(*job, index).is_some_and(Speed::is_measured);
                start_secs += self.secs(*job, index).max(BUSY_SECS_MIN);
            }
        }
        waits
    }

    fn wait(&self, slot: &Slot<'_>, ahead: usize, about: Option<Duration>, instead: Option<Instead>) -> Wait {
        let (device, node) = (slot.device.device, slot.node.name.clone());
        match slot.reach {
            Reach::Unknown { until } if slot.attempt.is_none() && ahead == 0 => {
                Wait::NodeUnknown { node, given: until.since(self.now.boot), instead }
            }
            _ if ahead > 0 => Wait::Behind { jobs: ahead, device, node, about, instead },
            _ => Wait::Busy { device, node, about, instead },
        }
    }

    /// The free slot where `job` would end first, and how much later that is than `end_secs`.
    fn instead(&self, job: usize, end_secs: f64, free: &FreeSlots) -> Option<Instead> {
        let task = &self.problem.tasks[job];
        let end = |slot: usize| (self.secs(job, slot), slot);
        let (secs, slot) = if task.is_plain() {
            end(free.fastest[task.class]?)
        } else {
            let ends = free.slots.iter().map(|slot| end(*slot)).filter(|(secs, _)| secs.is_finite());
            ends.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))?
        };
        let slot = &self.slots[slot];
        let (device, node) = (slot.device.device, slot.node.name.clone());
        Some(Instead { device, node, later: duration(secs - end_secs) })
    }

    fn free_slots(&self) -> FreeSlots {
        let slots: Vec<usize> = (0..self.slots.len()).filter(|index| self.slots[*index].is_free()).collect();
        let fastest = self.problem.classes.iter().map(|row| {
            let can = slots.iter().copied().filter(|slot| row[*slot].is_finite());
            can.min_by(|a, b| row[*a].total_cmp(&row[*b]).then(a.cmp(b)))
        });
        FreeSlots { fastest: fastest.collect(), slots }
    }

    /// Why no slot can take `job`.
    fn no_place(&self, job: &Job) -> Wait {
        if self.cluster.nodes.is_empty() {
            return Wait::NoNodes;
        }
        let needs = Needs::of(job);
        let fit: Vec<&Slot<'_>> = self.slots.iter().filter(|slot| slot.unfit(&needs).is_none()).collect();
        if fit.is_empty() {
            let small = |slot: &&Slot<'_>| matches!(slot.unfit(&needs), Some(Unfit::Memory { .. }));
            let most_bytes = self.slots.iter().filter(small).map(|slot| slot.device.memory_bytes).max();
            return match most_bytes {
                Some(most_bytes) => {
                    Wait::TooLittleMemory { least_bytes: needs.memory_bytes_least, most_bytes }
                }
                None => {
                    Wait::NoSuchDevice { wishes: job.spec.devices.clone(), fleet: Fleet::of(self.cluster) }
                }
            };
        }
        let names = |slots: &mut dyn Iterator<Item = &&Slot<'_>>| -> Vec<Name> {
            let names: BTreeSet<Name> = slots.map(|slot| slot.node.name.clone()).collect();
            names.into_iter().collect()
        };
        let open = fit.iter().filter(|slot| slot.node.mode == NodeMode::Open);
        let away = open.filter_map(|slot| match slot.reach {
            Reach::Away(away) => Some((slot.node.name.clone(), away)),
            _ => None,
        });
        let away: BTreeMap<Name, Away> = away.collect();
        if !away.is_empty() {
            let nodes = away.into_iter().map(|(name, away)| AwayNode { name, away });
            return Wait::NodeAway { nodes: nodes.collect() };
        }
        let nodes = names(&mut fit.iter().filter(|slot| slot.reach != Reach::Lost));
        if nodes.is_empty() {
            Wait::NodeNotConnected { nodes: names(&mut fit.iter()) }
        } else {
            Wait::NodeCordoned { nodes }
        }
    }
}

/// The slots that are free.
struct FreeSlots {
    slots: Vec<usize>,
    /// For each class of jobs, the fastest of them, if one will do.
    fastest: Vec<Option<usize>>,
}
