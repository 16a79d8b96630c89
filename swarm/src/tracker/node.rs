//! A node as the tracker knows it, whatever the blob.

use std::collections::BTreeSet;

use hatchery_common::id::{BlobId, NodeId};

use crate::{
    limits::{BARRED_BY, CHILDREN_MAX, CHILDREN_MIN, CHILDREN_TYPICAL},
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
    Up,
    Down,
}

/// A node below this share of the typical uplink does not serve what it does not have as a whole.
const SLOW_SHARE: f64 = 0.5;
/// A rate counts as changed when it differs by this share from the one that was last planned with.
const CHANGED_SHARE: f64 = 0.25;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) reach: Reach,
    up: DecayingMean,
    down: DecayingMean,
    /// The uplink as it was last planned with.
    planned_with: Option<f64>,
    /// That uplink beside the typical one of that moment; 1 until it is known.
    share: f64,
    /// Whether its uplink is so slow that it serves nobody as long as others do.
    is_slow: bool,
    /// The children that have had less from it than from others since it last sent enough.
    pub(super) called_slow_by: BTreeSet<NodeId>,
    /// Children at all blobs together.
    pub(super) children: usize,
    /// The blobs that it has or receives.
    pub(super) blobs: BTreeSet<BlobId>,
    /// Who was sent a wrong byte by it.
    pub(super) suspected_by: BTreeSet<NodeId>,
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
            up: DecayingMean::default(),
            down: DecayingMean::default(),
            planned_with: None,
            share: 1.0,
            is_slow: false,
            called_slow_by: BTreeSet::new(),
            children: 0,
            blobs: BTreeSet::new(),
            suspected_by: BTreeSet::new(),
        }
    }

    /// Takes a measurement; true if plans may change by it. That little was sent may be for those who received it, so an
    /// uplink counts as slow only if half of its children have said so.
    pub(super) fn measured(
        &mut self,
        direction: Direction,
        bytes_per_sec: f64,
        typical: &mut Typical,
    ) -> bool {
        if direction == Direction::Down {
            self.down.add(bytes_per_sec);
            return false;
        }
        let known = [self.up.get(), typical.bytes_per_sec()].into_iter().flatten().fold(0.0, f64::max);
        let is_little = bytes_per_sec < SLOW_SHARE * known;
        let is_blamed = is_little && 2 * self.called_slow_by.len() >= self.children.max(1);
        if is_little && !is_blamed {
            return false;
        }
        if !is_little {
            self.called_slow_by.clear();
        }
        self.takes_up(bytes_per_sec, is_blamed, typical)
    }

    /// Takes an uplink's rate for granted; true if plans may change by it.
    pub(super) fn knows_up(&mut self, bytes_per_sec: f64, typical: &mut Typical) -> bool {
        self.takes_up(bytes_per_sec, true, typical)
    }

    fn takes_up(&mut self, bytes_per_sec: f64, may_be_slow: bool, typical: &mut Typical) -> bool {
        self.up.add(bytes_per_sec);
        let (Some(now), old) = (self.up.get(), self.planned_with) else { return false };
        let is_other = old.is_none_or(|old| (now - old).abs() > CHANGED_SHARE * old);
        if is_other {
            self.planned_with = Some(now);
            typical.replace(old, Some(now));
            self.share = typical.bytes_per_sec().map_or(1.0, |typical| now / typical);
        }
        // What is typical may have come to be known after this node was.
        let share = typical.bytes_per_sec().map_or(1.0, |typical| now / typical);
        let is_slow = share < SLOW_SHARE && (may_be_slow || self.is_slow);
        is_other | (std::mem::replace(&mut self.is_slow, is_slow) != is_slow)
    }

    /// Takes a downlink's rate for granted.
    pub(super) fn knows_down(&mut self, bytes_per_sec: f64) {
        self.down.add(bytes_per_sec);
    }

    /// It counts no more.
    pub(super) fn forget(&self, typical: &mut Typical) {
        typical.replace(self.planned_with, None);
    }

    /// Bytes per second, as a decaying mean of what was measured.
    pub(super) fn bytes_per_sec(&self, direction: Direction) -> Option<f64> {
        match direction {
            Direction::Up => self.up.get(),
            Direction::Down => self.down.get(),
        }
    }

    /// Whether nobody fetches from it as long as others serve.
    pub(super) fn is_leaf(&self) -> bool {
        self.children_max(false) == 0
    }

    /// Whether nobody is to have it as a parent.
    pub(super) fn is_barred(&self) -> bool {
        self.suspected_by.len() >= BARRED_BY
    }

    /// Its upload slots: the most children it should have. One that is slow has none unless it must serve.
    pub(super) fn children_max(&self, must_serve: bool) -> usize {
        if !self.reach.can_be_dialled || self.is_barred() || (self.is_slow && !must_serve) {
            return 0;
        }
        // In whole multiples of the typical: an uplink is not measured so well that one child more or less meant anything.
        let slots = CHILDREN_TYPICAL.saturating_mul(self.share.round() as usize);
        let min = if self.is_slow { CHILDREN_MIN } else { CHILDREN_TYPICAL };
        slots.clamp(min, CHILDREN_MAX).min(self.reach.children_max.unwrap_or(CHILDREN_MAX))
    }
}
