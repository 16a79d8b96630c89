//! Which rollouts stay on record.
//!
//! One that was taken back is history, and of history the newest is kept. One in force is superseded for good when so many
//! newer ones, each in force wherever it is, would have to be taken back before it counted again: then it decides nothing,
//! also not on nodes that join later, and only its checkpoint takes up room.

use std::collections::{BTreeMap, BTreeSet};

use hatchery_common::{
    id::{CheckpointId, JobId},
    recipe::NodeSelector,
    time::Timestamp,
};

use crate::{
    cluster::{Cluster, Rollout},
    event::{Event, What},
    rollout::order,
};

/// The rollouts that go off the record now. Of each job stay the newest `kept` that were taken back, and in force those
/// to which `kept` rollbacks in a row can lead. Pure, and at rest after one step.
pub fn forget_rollouts(cluster: &Cluster, kept: usize, at: Timestamp) -> Vec<Event> {
    let mut withdrawn: BTreeMap<JobId, Vec<&Rollout>> = BTreeMap::new();
    let mut rivals: BTreeMap<Rivals, Vec<&Rollout>> = BTreeMap::new();
    for rollout in cluster.rollouts.values() {
        let Some(job) = cluster.job_of(rollout.checkpoint) else { continue };
        if rollout.withdrawn_at.is_some() {
            withdrawn.entry(job).or_default().push(rollout);
        } else {
            let checkpoint = (!rollout.activate).then_some(rollout.checkpoint);
            rivals.entry(Rivals { job, checkpoint }).or_default().push(rollout);
        }
    }
    let old = withdrawn.into_values().flat_map(|line| {
        newest_first(line, |rollout| (rollout.withdrawn_at, order(rollout))).into_iter().skip(kept)
    });
    let superseded = rivals
        .into_values()
        .filter(|line| line.len() > kept)
        .flat_map(|line| superseded(newest_first(line, order), kept));
    let forgotten = old.chain(superseded);
    forgotten
        .map(|rollout| What::RolloutForgotten { rollout: rollout.id, checkpoint: rollout.checkpoint }.at(at))
        .collect()
}

/// The rollouts that can take each other's place: the activating ones of a job, or those that put the same checkpoint
/// somewhere without making it active.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rivals {
    job: JobId,
    checkpoint: Option<CheckpointId>,
}

fn newest_first<K: Ord>(mut line: Vec<&Rollout>, age: impl Fn(&Rollout) -> K) -> Vec<&Rollout> {
    line.sort_by_cached_key(|rollout| std::cmp::Reverse(age(rollout)));
    line
}

/// Those of `line`, newest first, that `kept` newer ones cover.
fn superseded(line: Vec<&Rollout>, kept: usize) -> impl Iterator<Item = &Rollout> {
    let mut newer: BTreeMap<Reach<'_>, usize> = BTreeMap::new();
    line.into_iter().filter(move |rollout| {
        let reach = Reach::of(rollout);
        let covered: usize = reach.covering().iter().filter_map(|wider| newer.get(wider)).sum();
        *newer.entry(reach).or_default() += 1;
        covered >= kept
    })
}

/// Where a rollout is in force, whichever nodes there are or will be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Reach<'a> {
    to: &'a NodeSelector,
    not_on: BTreeSet<&'a NodeSelector>,
}

impl<'a> Reach<'a> {
    fn of(rollout: &'a Rollout) -> Self {
        Self { to: &rollout.to, not_on: rollout.not_on.iter().collect() }
    }

    /// Itself and what is sure to hold it, each once.
    fn covering(&self) -> BTreeSet<Self> {
        let places = [self.to, &NodeSelector::All];
        let with = |not_on: &BTreeSet<&'a NodeSelector>| places.map(|to| Self { to, not_on: not_on.clone() });
        with(&self.not_on).into_iter().chain(with(&BTreeSet::new())).collect()
    }
}
