//! A node as the tracker knows it, whatever the blob.

use std::collections::BTreeSet;

use hatchery_common::id::{BlobId, NodeId};

use crate::{
    limits::{
        BARRED_BY, CHILDREN_MAX, CHILDREN_MIN, CHILDREN_MIN_COMPLETE, CHILDREN_TYPICAL, PARENTS_MAX, PARENTS_MIN,
    },
    mean::DecayingMean,
};

/// How a node is reached, as it joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Whether others can open connections to it.
    pub can_be_dialled: bool,
    /// Most children it will have, if somebody has said so.
    pub children_max: Option<usize>,
}

/// One direction of a node's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What it sends.
    Up,
    /// What it receives.
    Down,
}

/// A node below this share of the typical uplink does not serve what it does not have as a whole.
const SLOW_SHARE: f64 = 0.5;
/// A rate counts as changed when it differs by this share from the one that was last planned with.
const CHANGED_SHARE: f64 = 0.25;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) reach: Reach,
    up: Link,
    down: Link,
    /// Children at all blobs together.
    pub(super) children: usize,
    /// The blobs that it has or receives.
    pub(super) blobs: BTreeSet<BlobId>,
    /// Who was sent a wrong byte by it.
    pub(super) suspected_by: BTreeSet<NodeId>,
}

#[derive(Debug, Default)]
struct Link {
    bytes_per_sec: DecayingMean,
    planned_with: Option<f64>,
}

/// The typical uplink: the geometric mean, which a few very fast or very slow nodes do not move far.
#[derive(Debug, Default)]
pub(super) struct Typical {
    logarithms: f64,
    count: usize,
}

impl Typical {
    fn replace(&mut self, old: Option<f64>, new: Option<f64>) {
        if let Some(old) = old {
            self.logarithms -= old.ln();
            self.count -= 1;
        }
        if let Some(new) = new {
            self.logarithms += new.ln();
            self.count += 1;
        }
    }

    fn bytes_per_sec(&self) -> Option<f64> {
        (self.count > 0).then(|| (self.logarithms / self.count as f64).exp())
    }
}

impl Node {
    pub(super) fn new(reach: Reach) -> Self {
        Self {
            reach,
            up: Link::default(),
            down: Link::default(),
            children: 0,
            blobs: BTreeSet::new(),
            suspected_by: BTreeSet::new(),
        }
    }

    /// Takes a measurement; true if plans may change by it.
    pub(super) fn measured(&mut self, direction: Direction, bytes_per_sec: f64, typical: &mut Typical) -> bool {
        let link = match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        };
        link.bytes_per_sec.add(bytes_per_sec);
        let (Some(now), old) = (link.bytes_per_sec.get(), link.planned_with) else { return false };
        if old.is_some_and(|old| (now - old).abs() <= CHANGED_SHARE * old) {
            return false;
        }
        link.planned_with = Some(now);
        if direction == Direction::Up {
            typical.replace(old, Some(now));
        }
        true
    }

    /// It counts no more.
    pub(super) fn forget(&self, typical: &mut Typical) {
        typical.replace(self.up.planned_with, None);
    }

    /// Bytes per second, as a decaying mean of what was measured.
    pub(super) fn bytes_per_sec(&self, direction: Direction) -> Option<f64> {
        match direction {
            Direction::Up => self.up.bytes_per_sec.get(),
            Direction::Down => self.down.bytes_per_sec.get(),
        }
    }

    fn share(link: &Link, typical: &Typical) -> f64 {
        match (link.planned_with, typical.bytes_per_sec()) {
            (Some(own), Some(typical)) => own / typical,
            _ => 1.0,
        }
    }

    /// Whether nobody is to have it as a parent.
    pub(super) fn is_barred(&self) -> bool {
        self.suspected_by.len() >= BARRED_BY
    }

    /// Its upload slots: the most children it should have, for blobs that it has as a whole or not.
    pub(super) fn children_max(&self, is_complete: bool, typical: &Typical) -> usize {
        let share = Self::share(&self.up, typical);
        if !self.reach.can_be_dialled || self.is_barred() || (share < SLOW_SHARE && !is_complete) {
            return 0;
        }
        let min = if is_complete { CHILDREN_MIN_COMPLETE } else { CHILDREN_MIN };
        let slots = (CHILDREN_TYPICAL as f64 * share).round() as usize;
        slots.clamp(min, CHILDREN_MAX).min(self.reach.children_max.unwrap_or(CHILDREN_MAX))
    }

    /// How many parents it should have: few if it is slow, so that it holds up few of them.
    pub(super) fn parents_max(&self, typical: &Typical) -> usize {
        let link = if self.down.planned_with.is_some() { &self.down } else { &self.up };
        let share = Self::share(link, typical);
        if share >= SLOW_SHARE {
            return PARENTS_MAX;
        }
        ((PARENTS_MAX as f64 * share).round() as usize).clamp(PARENTS_MIN, PARENTS_MAX)
    }
}
