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
    up: DecayingMean,
    down: DecayingMean,
    /// The uplink as it was last planned with.
    planned_with: Option<f64>,
    /// That uplink beside the typical one of that moment; 1 until it is known.
    share: f64,
    /// Whether a child has had less from it than from others.
    pub(super) is_called_slow: bool,
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
            is_called_slow: false,
            children: 0,
            blobs: BTreeSet::new(),
            suspected_by: BTreeSet::new(),
        }
    }

    /// Takes a measurement; true if plans may change by it. That little was sent may be for those who received it, so an
    /// uplink counts as slow only if a child has said so.
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
        let believed = self.up.get().or(typical.bytes_per_sec());
        if believed.is_some_and(|believed| bytes_per_sec < SLOW_SHARE * believed) && !self.is_called_slow {
            return false;
        }
        self.knows_up(bytes_per_sec, typical)
    }

    /// Takes an uplink's rate for granted; true if plans may change by it.
    pub(super) fn knows_up(&mut self, bytes_per_sec: f64, typical: &mut Typical) -> bool {
        self.up.add(bytes_per_sec);
        let (Some(now), old) = (self.up.get(), self.planned_with) else { return false };
        if old.is_some_and(|old| (now - old).abs() <= CHANGED_SHARE * old) {
            return false;
        }
        self.planned_with = Some(now);
        typical.replace(old, Some(now));
        self.share = typical.bytes_per_sec().map_or(1.0, |typical| now / typical);
        true
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
        if !self.reach.can_be_dialled || self.is_barred() || (self.share < SLOW_SHARE && !must_serve) {
            return 0;
        }
        // In whole multiples of the typical: an uplink is not measured so well that one child more or less meant anything.
        let slots = CHILDREN_TYPICAL.saturating_mul(self.share.round() as usize);
        let min = if must_serve { CHILDREN_MIN } else { CHILDREN_TYPICAL };
        slots.clamp(min, CHILDREN_MAX).min(self.reach.children_max.unwrap_or(CHILDREN_MAX))
    }
}
