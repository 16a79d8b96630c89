//! Who is in the swarm of one blob, and who is whose parent. Edges are kept at both ends.

use std::collections::{BTreeMap, VecDeque};

use hatchery_common::id::NodeId;

use crate::limits::{AVOIDED_MAX, BANNED_MAX, PARENTS_MAX, PARENTS_MORE};

/// A blob is rare while less than one member in so many has the whole of it.
const RARE_FACTOR: usize = 4;
/// A receiver is behind that has so much less than the mean, and no fewer pieces.
const BEHIND_SHARE: f64 = 0.02;
const BEHIND_PIECES_MIN: f64 = 6.0;

#[derive(Debug, Default)]
pub(super) struct Swarm {
    pub(super) members: BTreeMap<NodeId, Member>,
    /// All members, for drawing one at random; each knows its place here.
    pub(super) all: Vec<NodeId>,
    /// Receivers with fewer parents than they should have, in the order in which they are looked after.
    pub(super) hungry: VecDeque<NodeId>,
    /// How many members have the whole blob.
    pub(super) complete: usize,
    /// The pieces that all other members have, together.
    coming: u64,
}

#[derive(Debug, Default)]
pub(super) struct Member {
    pub(super) is_complete: bool,
    /// Pieces it has, as last told.
    pub(super) held: u32,
    pub(super) parents: Vec<NodeId>,
    pub(super) children: Vec<NodeId>,
    /// Parents that stalled, the oldest first.
    stalled: VecDeque<NodeId>,
    /// Parents that sent wrong bytes.
    banned: Vec<NodeId>,
    pub(super) is_hungry: bool,
    place: usize,
}

impl Member {
    fn coming(&self) -> u64 {
        if self.is_complete { 0 } else { self.held.into() }
    }

    pub(super) fn avoids(&self, node: NodeId) -> bool {
        self.stalled.contains(&node) || self.banned.contains(&node)
    }

    pub(super) fn has_banned(&self, node: NodeId) -> bool {
        self.banned.contains(&node)
    }

    /// Keeps away from a parent that stalled, until others have.
    pub(super) fn avoid(&mut self, node: NodeId) {
        if !self.stalled.contains(&node) {
            self.stalled.push_back(node);
        }
        if self.stalled.len() > AVOIDED_MAX {
            self.stalled.pop_front();
        }
    }

    pub(super) fn ban(&mut self, node: NodeId) {
        if !self.banned.contains(&node) && self.banned.len() < BANNED_MAX {
            self.banned.push(node);
        }
    }
}

impl Swarm {
    /// The member of this name, a new one if there is none.
    pub(super) fn member(&mut self, node: NodeId) -> &mut Member {
        let all = &mut self.all;
        self.members.entry(node).or_insert_with(|| {
            all.push(node);
            Member { place: all.len() - 1, ..Member::default() }
        })
    }

    /// Takes a member out, whose edges are gone already.
    pub(super) fn remove(&mut self, node: NodeId) {
        let Some(member) = self.members.remove(&node) else { return };
        self.complete -= usize::from(member.is_complete);
        self.coming -= member.coming();
        self.all.swap_remove(member.place);
        if let Some(moved) = self.all.get(member.place).and_then(|moved| self.members.get_mut(moved)) {
            moved.place = member.place;
        }
    }

    /// Notes whether a member has the whole blob; false if that was known.
    pub(super) fn set_complete(&mut self, node: NodeId, is_complete: bool) -> bool {
        let member = self.member(node);
        if member.is_complete == is_complete {
            return false;
        }
        let before = member.coming();
        member.is_complete = is_complete;
        let now = member.coming();
        self.coming = self.coming - before + now;
        if is_complete {
            self.complete += 1;
        } else {
            self.complete -= 1;
        }
        true
    }

    /// Notes how many pieces a member has.
    pub(super) fn set_held(&mut self, node: NodeId, held: u32) {
        let member = self.member(node);
        let before = member.coming();
        member.held = held;
        let now = member.coming();
        self.coming = self.coming - before + now;
    }

    /// The most parents that a receiver should have: more than others if it has clearly fewer pieces than they, as a mean.
    pub(super) fn parents_max(&self, receiver: NodeId) -> usize {
        let receivers = self.members.len() - self.complete;
        let Some(member) = self.members.get(&receiver).filter(|_| receivers > 1) else { return PARENTS_MAX };
        let mean = self.coming as f64 / receivers as f64;
        let is_behind = f64::from(member.held) < mean - (BEHIND_SHARE * mean).max(BEHIND_PIECES_MIN);
        PARENTS_MAX + if is_behind { PARENTS_MORE } else { 0 }
    }

    /// Whether only few have the whole blob, so that what they send must not go to those who pass nothing on.
    pub(super) fn is_rare(&self) -> bool {
        RARE_FACTOR * self.complete < self.members.len()
    }

    pub(super) fn is_parent(&self, parent: NodeId, receiver: NodeId) -> bool {
        self.members.get(&receiver).is_some_and(|member| member.parents.contains(&parent))
    }

    /// Puts a receiver into the line of those who want more parents.
    pub(super) fn queue(&mut self, receiver: NodeId) {
        if let Some(member) = self.members.get_mut(&receiver)
            && !member.is_hungry
        {
            member.is_hungry = true;
            self.hungry.push_back(receiver);
        }
    }
}
