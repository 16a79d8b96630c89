//! Who is in the swarm of one blob, and who is whose parent. Edges are kept at both ends.

use std::collections::{BTreeMap, VecDeque};

use hatchery_common::id::NodeId;

use crate::limits::{AVOIDED_MAX, BANNED_MAX};

/// A blob is rare while less than one member in so many has the whole of it.
const RARE_FACTOR: usize = 4;

#[derive(Debug, Default)]
pub(super) struct Swarm {
    pub(super) members: BTreeMap<NodeId, Member>,
    /// All members, for drawing one at random; each knows its place here.
    pub(super) all: Vec<NodeId>,
    /// Receivers with fewer parents than they should have, in the order in which they are looked after.
    pub(super) hungry: VecDeque<NodeId>,
    /// How many members have the whole blob.
    pub(super) complete: usize,
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
        member.is_complete = is_complete;
        if is_complete {
            self.complete += 1;
        } else {
            self.complete -= 1;
        }
        true
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
