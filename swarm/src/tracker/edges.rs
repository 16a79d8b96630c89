//! Edges between parents and children: drawn at random, spread evenly, never more than there are upload slots.
//!
//! A receiver takes free slots first. If there are none, and it can serve itself, it goes between a parent and one of its
//! children, so that the graph stays one in which everybody has as many children as parents and, drawn at random, no part
//! lies apart. If it cannot serve, it is given a parent of somebody who has at least two more than it has.

use hatchery_common::id::{BlobId, NodeId};

use super::{Tracker, node::Node, swarm::Member};
use crate::limits::{
    DRAWN, HUNGRY_IN_VAIN_MAX, HUNGRY_SERVED_MAX, LOOKED_AT_MAX, PARENTS_ENOUGH, PARENTS_FEW,
};

impl Tracker {
    /// Whether `receiver` may have this node as a parent at all.
    pub(super) fn can_serve(&self, blob: BlobId, node: NodeId, receiver: &Member) -> bool {
        self.slots(blob, node).is_some_and(|(slots, _)| slots > 0) && !receiver.has_banned(node)
    }

    /// Gives a receiver the parents it lacks, as far as there are any.
    pub(super) fn fill(&mut self, blob: BlobId, receiver: NodeId) {
        loop {
            let Some(swarm) = self.swarms.get(&blob) else { return };
            let Some(member) = swarm.members.get(&receiver) else { return };
            if member.is_complete || member.parents.len() >= swarm.parents_max(receiver) {
                return;
            }
            let parent = self.draw(blob, receiver, |tracker, parent| tracker.has_free_slot(blob, parent));
            if let Some(parent) = parent {
                self.link(blob, parent, receiver);
            } else if !self.split(blob, receiver) && !self.take_over(blob, receiver) {
                if let Some(swarm) = self.swarms.get_mut(&blob) {
                    swarm.queue(receiver);
                }
                return;
            }
        }
    }

    /// Looks after some of those who want more parents, until a few have found none.
    pub(super) fn serve_hungry(&mut self, blob: BlobId) {
        let mut in_vain = 0;
        for _ in 0..HUNGRY_SERVED_MAX {
            let Some(swarm) = self.swarms.get_mut(&blob) else { return };
            let Some(receiver) = swarm.hungry.pop_front() else { return };
            let Some(member) = swarm.members.get_mut(&receiver) else { continue };
            member.is_hungry = false;
            if member.is_complete {
                continue;
            }
            let before = member.parents.len();
            self.fill(blob, receiver);
            in_vain += usize::from(self.parent_count(blob, receiver) == before);
            if in_vain == HUNGRY_IN_VAIN_MAX {
                return;
            }
        }
    }

    /// Puts another parent in the place of one, if there is another.
    pub(super) fn replace(&mut self, blob: BlobId, receiver: NodeId, parent: NodeId) {
        let free = |tracker: &Self, other: NodeId| tracker.has_free_slot(blob, other);
        if let Some(other) = self.draw(blob, receiver, free) {
            self.unlink(blob, parent, receiver);
            self.link(blob, other, receiver);
        } else if self.split(blob, receiver) || self.take_over(blob, receiver) {
            self.unlink(blob, parent, receiver);
        } else if self.parent_count(blob, receiver) > 1 {
            // Better one parent less than one that keeps silent.
            self.unlink(blob, parent, receiver);
            if let Some(swarm) = self.swarms.get_mut(&blob) {
                swarm.queue(receiver);
            }
        }
    }

    /// Exchanges the parent that has least for one with a free slot, or for somebody else's.
    pub(super) fn rotate(&mut self, blob: BlobId, receiver: NodeId) {
        let Some(swarm) = self.swarms.get(&blob) else { return };
        let Some(member) = swarm.members.get(&receiver) else { return };
        let held = |node: &NodeId| swarm.members.get(node).map_or(0, |member| member.held);
        let Some(worst) = self.random.least(member.parents.iter().copied(), held) else {
            return self.fill(blob, receiver);
        };
        if let Some(other) = self.draw(blob, receiver, |tracker, other| tracker.has_free_slot(blob, other)) {
            self.unlink(blob, worst, receiver);
            self.link(blob, other, receiver);
        } else if let Some((other, child)) = self.draw_edge(blob, receiver, |tracker, _, child| {
            tracker.swarms[&blob].members.get(&child).is_some_and(|child| !child.avoids(worst))
                && child != worst
                && !tracker.swarms[&blob].is_parent(worst, child)
        }) {
            self.unlink(blob, worst, receiver);
            self.unlink(blob, other, child);
            self.link(blob, other, receiver);
            self.link(blob, worst, child);
        }
    }

    /// Takes children from those in the swarm who have fewer slots now.
    pub(super) fn shed(&mut self, blob: BlobId) {
        let Some(swarm) = self.swarms.get(&blob) else { return };
        let is_over = |&node: &NodeId| self.slots(blob, node).is_some_and(|(slots, taken)| taken > slots);
        for node in swarm.all.iter().copied().filter(is_over).collect::<Vec<_>>() {
            self.slots_changed(node);
        }
    }

    /// A node has more or fewer slots than before.
    pub(super) fn slots_changed(&mut self, node: NodeId) {
        let Some(known) = self.nodes.get(&node) else { return };
        for blob in known.blobs.clone() {
            while let Some((slots, taken)) = self.slots(blob, node)
                && taken > slots
                && let Some(child) = self.swarms[&blob].members[&node].children.last().copied()
            {
                self.unlink(blob, node, child);
                self.fill(blob, child);
            }
            self.leave_complete(blob, node);
            self.fill(blob, node);
            self.serve_hungry(blob);
        }
    }

    /// One that serves nobody gives up the parents that have the whole blob, as long as it has others enough.
    fn leave_complete(&mut self, blob: BlobId, node: NodeId) {
        let Some(member) = self.swarms.get(&blob).and_then(|swarm| swarm.members.get(&node)) else { return };
        let (unwanted, others): (Vec<_>, Vec<_>) =
            member.parents.iter().copied().partition(|&parent| self.wastes(blob, parent, node));
        if others.len() >= PARENTS_ENOUGH {
            for parent in unwanted {
                self.unlink(blob, parent, node);
            }
        }
    }

    /// Goes between a parent and one of its children.
    fn split(&mut self, blob: BlobId, receiver: NodeId) -> bool {
        if !self.has_free_slot(blob, receiver) {
            return false;
        }
        let edge = self.draw_edge(blob, receiver, |tracker, _, child| {
            let swarm = &tracker.swarms[&blob];
            !swarm.is_parent(receiver, child)
                && swarm.members.get(&child).is_some_and(|member| !member.avoids(receiver))
        });
        let Some((parent, child)) = edge else { return false };
        self.unlink(blob, parent, child);
        self.link(blob, parent, receiver);
        self.link(blob, receiver, child);
        true
    }

    /// Takes a parent over from somebody who has at least two more, as long as it has very few.
    fn take_over(&mut self, blob: BlobId, receiver: NodeId) -> bool {
        let own = self.parent_count(blob, receiver);
        if own >= PARENTS_FEW {
            return false;
        }
        let edge =
            self.draw_edge(blob, receiver, |tracker, _, child| tracker.parent_count(blob, child) >= own + 2);
        let Some((parent, child)) = edge else { return false };
        self.unlink(blob, parent, child);
        self.link(blob, parent, receiver);
        if let Some(swarm) = self.swarms.get_mut(&blob) {
            swarm.queue(child);
        }
        true
    }

    /// A member that could be a parent of `receiver`, is none yet and suits; see [`Tracker::reluctance`].
    fn draw(
        &mut self,
        blob: BlobId,
        receiver: NodeId,
        suits: impl Fn(&Self, NodeId) -> bool,
    ) -> Option<NodeId> {
        let candidates = self.candidates(blob, receiver).into_iter();
        let suitable = candidates.filter(|&node| suits(self, node));
        suitable.min_by_key(|&node| self.reluctance(blob, node, receiver))
    }

    /// How much one would rather have somebody else as a parent: most if it has stalled, then if it is suspected of wrong
    /// bytes.
    fn reluctance(&self, blob: BlobId, parent: NodeId, receiver: NodeId) -> u8 {
        let member = self.swarms.get(&blob).and_then(|swarm| swarm.members.get(&receiver));
        let has_stalled = member.is_some_and(|member| member.avoids(parent));
        let is_suspected = self.nodes.get(&parent).is_some_and(|known| !known.suspected_by.is_empty());
        4 * u8::from(has_stalled) + 2 * u8::from(is_suspected) + u8::from(self.wastes(blob, parent, receiver))
    }

    /// Whether the parent is one of few that have the whole blob, and the receiver passes nothing on.
    fn wastes(&self, blob: BlobId, parent: NodeId, receiver: NodeId) -> bool {
        let is_leaf = self.nodes.get(&receiver).is_some_and(Node::is_leaf);
        let swarm = self.swarms.get(&blob).filter(|swarm| is_leaf && swarm.is_rare());
        swarm.and_then(|swarm| swarm.members.get(&parent)).is_some_and(|member| member.is_complete)
    }

    /// An edge from a member that could be a parent of `receiver` to one of its children.
    fn draw_edge(
        &mut self,
        blob: BlobId,
        receiver: NodeId,
        suits: impl Fn(&Self, NodeId, NodeId) -> bool,
    ) -> Option<(NodeId, NodeId)> {
        let mut parents = self.candidates(blob, receiver);
        parents.sort_by_key(|&parent| self.reluctance(blob, parent, receiver));
        for parent in parents {
            let children = &self.swarms.get(&blob)?.members.get(&parent)?.children;
            let first = self.random.below(children.len());
            let mut turned = children[first..].iter().chain(&children[..first]).copied();
            if let Some(child) = turned.find(|&child| child != receiver && suits(self, parent, child)) {
                return Some((parent, child));
            }
        }
        None
    }

    /// Some members that could be parents of `receiver` and are none yet, in random order: all of them if they are few.
    fn candidates(&mut self, blob: BlobId, receiver: NodeId) -> Vec<NodeId> {
        let Some(swarm) = self.swarms.get(&blob) else { return Vec::new() };
        let Some(member) = swarm.members.get(&receiver) else { return Vec::new() };
        let mut drawn: Vec<NodeId> = if swarm.all.len() <= LOOKED_AT_MAX {
            swarm.all.clone()
        } else {
            (0..DRAWN).map(|_| swarm.all[self.random.below(swarm.all.len())]).collect()
        };
        if member.parents.len() >= PARENTS_ENOUGH {
            drawn.retain(|&node| !self.wastes(blob, node, receiver));
        }
        // To one whose own link was down all others seemed to stall: better one of them again than nobody.
        let takes_any = member.parents.len() < PARENTS_ENOUGH;
        drawn.retain(|&node| {
            node != receiver
                && !member.parents.contains(&node)
                && (takes_any || !member.avoids(node))
                && self.can_serve(blob, node, member)
        });
        for last in (1..drawn.len()).rev() {
            drawn.swap(last, self.random.below(last + 1));
        }
        drawn
    }

    fn has_free_slot(&self, blob: BlobId, node: NodeId) -> bool {
        self.slots(blob, node).is_some_and(|(slots, taken)| taken < slots)
    }

    fn parent_count(&self, blob: BlobId, receiver: NodeId) -> usize {
        let swarm = self.swarms.get(&blob);
        swarm.and_then(|swarm| swarm.members.get(&receiver)).map_or(0, |member| member.parents.len())
    }

    fn link(&mut self, blob: BlobId, parent: NodeId, receiver: NodeId) {
        let Some(swarm) = self.swarms.get_mut(&blob) else { return };
        if !swarm.members.contains_key(&parent) || !swarm.members.contains_key(&receiver) {
            return;
        }
        swarm.member(receiver).parents.push(parent);
        swarm.member(parent).children.push(receiver);
        if let Some(known) = self.nodes.get_mut(&parent) {
            known.children += 1;
        }
        self.changed.insert((blob, receiver));
    }

    pub(super) fn unlink(&mut self, blob: BlobId, parent: NodeId, receiver: NodeId) {
        let Some(swarm) = self.swarms.get_mut(&blob) else { return };
        if !swarm.is_parent(parent, receiver) {
            return;
        }
        swarm.member(receiver).parents.retain(|&node| node != parent);
        swarm.member(parent).children.retain(|&node| node != receiver);
        if let Some(known) = self.nodes.get_mut(&parent) {
            known.children -= 1;
        }
        self.changed.insert((blob, receiver));
    }
}
