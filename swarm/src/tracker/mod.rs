//! Who has what, and who gets it from whom.

mod edges;
mod node;
mod swarm;

use std::collections::{BTreeMap, BTreeSet};

use hatchery_common::{
    id::{BlobId, NodeId},
    swarm::{COORDINATOR, Trouble, Wait},
};

use crate::{
    limits::{BARRED_BY, CHILDREN_MAX, PARENTS_MAX, SUSPECTS_TOLD_MAX},
    random::Random,
};
pub use node::{Direction, Reach};
use node::{Node, Typical};
use swarm::Swarm;

/// The tracker of all blobs of a fleet. It is told what happens, and gives the plans that change by it.
#[derive(Debug)]
pub struct Tracker {
    nodes: BTreeMap<NodeId, Node>,
    swarms: BTreeMap<BlobId, Swarm>,
    /// Suspected nodes that are gone, and by whom they are.
    gone_suspects: BTreeMap<NodeId, BTreeSet<NodeId>>,
    typical: Typical,
    changed: BTreeSet<(BlobId, NodeId)>,
    random: Random,
}

/// From whom a receiver is to fetch a blob. A newer plan replaces an older one as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub blob: BlobId,
    pub receiver: NodeId,
    /// From whom, each with the reason; none while it waits.
    pub parents: Vec<(NodeId, Because)>,
    /// Why there is no parent yet.
    pub waits: Option<Wait>,
}

/// Why somebody is a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// It has the whole blob.
    HasAll,
    /// It receives the blob too, and has an upload slot to give.
    Receives,
}

/// A node that is suspected of sending wrong bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    pub node: NodeId,
    /// Who was sent some.
    pub reported_by: Vec<NodeId>,
    /// Whether so many have said it that it is nobody's parent any more.
    pub is_barred: bool,
}

impl Tracker {
    /// A tracker that knows nothing yet.
    pub fn new(random: Random) -> Self {
        Self {
            nodes: BTreeMap::new(),
            swarms: BTreeMap::new(),
            gone_suspects: BTreeMap::new(),
            typical: Typical::default(),
            changed: BTreeSet::new(),
            random,
        }
    }

    /// The plans whose parents have changed since this was last asked. That a reason is another one now is not told.
    pub fn take_plans(&mut self) -> Vec<Plan> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().filter_map(|(blob, receiver)| self.plan(blob, receiver)).collect()
    }

    /// The plan of a receiver as it is now; none if it does not fetch this blob.
    pub fn plan(&self, blob: BlobId, receiver: NodeId) -> Option<Plan> {
        let swarm = self.swarms.get(&blob)?;
        let member = swarm.members.get(&receiver).filter(|member| !member.is_complete)?;
        let because = |&node: &NodeId| match swarm.members.get(&node) {
            Some(parent) if parent.is_complete => (node, Because::HasAll),
            _ => (node, Because::Receives),
        };
        let parents: Vec<_> = member.parents.iter().map(because).collect();
        let can_serve = |(node, other): (&NodeId, &swarm::Member)| {
            *node != receiver && (other.is_complete || other.held > 0) && self.can_serve(blob, *node, member)
        };
        let waits = parents
            .is_empty()
            .then(|| if swarm.members.iter().any(can_serve) { Wait::NoSlot } else { Wait::NoHolder });
        Some(Plan { blob, receiver, parents, waits })
    }

    /// A node is connected to the coordinator. What it has and wants is told next.
    pub fn node_came(&mut self, node: NodeId, reach: Reach) {
        match self.nodes.get_mut(&node) {
            None => {
                let mut new = Node::new(reach);
                new.suspected_by = self.gone_suspects.remove(&node).unwrap_or_default();
                self.nodes.insert(node, new);
            }
            Some(known) if known.reach != reach => {
                known.reach = reach;
                self.slots_changed(node);
            }
            Some(_) => {}
        }
    }

    /// A node is gone; what is known of it is forgotten, but not whether it is suspected.
    pub fn node_left(&mut self, node: NodeId) {
        let Some(known) = self.nodes.get(&node) else { return };
        for blob in known.blobs.clone() {
            self.leaves(blob, node);
        }
        let Some(known) = self.nodes.get_mut(&node) else { return };
        known.forget(&mut self.typical);
        let suspected_by = std::mem::take(&mut known.suspected_by);
        self.nodes.remove(&node);
        if !suspected_by.is_empty() {
            self.gone_suspects.insert(node, suspected_by);
        }
    }

    /// A node has the whole blob.
    pub fn has_all(&mut self, blob: BlobId, node: NodeId) {
        if !self.enters(blob, node) {
            return;
        }
        let Some(swarm) = self.swarms.get_mut(&blob) else { return };
        if swarm.set_complete(node, true) {
            for parent in swarm.member(node).parents.clone() {
                self.unlink(blob, parent, node);
            }
            if self.swarms.get(&blob).is_some_and(|swarm| swarm.complete == 1) {
                self.shed(blob);
            }
            self.serve_hungry(blob);
        }
    }

    /// A node wants a blob, of which it has so many pieces already.
    pub fn wants(&mut self, blob: BlobId, node: NodeId, held: u32) {
        if !self.enters(blob, node) {
            return;
        }
        let Some(swarm) = self.swarms.get_mut(&blob) else { return };
        swarm.set_held(node, held);
        if swarm.set_complete(node, false) {
            self.slots_changed(node);
        }
        self.changed.insert((blob, node));
        self.fill(blob, node);
        self.serve_hungry(blob);
    }

    /// A receiver has come to have so many pieces.
    pub fn progressed(&mut self, blob: BlobId, node: NodeId, held: u32) {
        let Some(swarm) = self.swarms.get_mut(&blob).filter(|swarm| swarm.members.contains_key(&node)) else {
            return;
        };
        swarm.set_held(node, held);
        if swarm.parents_max(node) > PARENTS_MAX {
            self.fill(blob, node);
        }
    }

    /// A node neither has nor wants a blob any more.
    pub fn leaves(&mut self, blob: BlobId, node: NodeId) {
        let Some(swarm) = self.swarms.get_mut(&blob) else { return };
        let Some(member) = swarm.members.get(&node) else { return };
        let (parents, children) = (member.parents.clone(), member.children.clone());
        for parent in parents {
            self.unlink(blob, parent, node);
        }
        for &child in &children {
            self.unlink(blob, node, child);
        }
        if let Some(swarm) = self.swarms.get_mut(&blob) {
            swarm.remove(node);
            if swarm.members.is_empty() {
                self.swarms.remove(&blob);
            }
        }
        if let Some(known) = self.nodes.get_mut(&node) {
            known.blobs.remove(&blob);
        }
        for child in children {
            self.fill(blob, child);
        }
        self.serve_hungry(blob);
    }

    /// One direction of a node's link was measured while it was busy.
    pub fn measured(&mut self, node: NodeId, direction: Direction, bytes_per_sec: f64) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        if known.measured(direction, bytes_per_sec, &mut self.typical) {
            self.slots_changed(node);
        }
    }

    /// A node's link was measured before this tracker began, or somebody has said how fast it is.
    pub fn link_is(&mut self, node: NodeId, up_bytes_per_sec: f64, down_bytes_per_sec: f64) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        known.knows_down(down_bytes_per_sec);
        if known.knows_up(up_bytes_per_sec, &mut self.typical) {
            self.slots_changed(node);
        }
    }

    /// What is known of a node's link, in bytes per second.
    pub fn bytes_per_sec(&self, node: NodeId, direction: Direction) -> Option<f64> {
        self.nodes.get(&node)?.bytes_per_sec(direction)
    }

    /// A receiver reports trouble.
    pub fn trouble(&mut self, blob: BlobId, receiver: NodeId, trouble: Trouble) {
        let Some(swarm) = self.swarms.get_mut(&blob) else { return };
        let Some(member) = swarm.members.get_mut(&receiver).filter(|member| !member.is_complete) else {
            return;
        };
        match trouble {
            Trouble::Stalled(parent) if member.parents.contains(&parent) => {
                member.avoid(parent);
                self.replace(blob, receiver, parent);
            }
            Trouble::Stalled(_) => {}
            Trouble::Slow(parent) => {
                // No more than a node has children, so that what is kept is bounded.
                if let Some(known) =
                    self.nodes.get_mut(&parent).filter(|known| known.called_slow_by.len() < CHILDREN_MAX)
                {
                    known.called_slow_by.insert(receiver);
                }
            }
            // Of somebody who is not here there is nothing to keep.
            Trouble::Wrong(parent) if !self.nodes.contains_key(&parent) => {}
            Trouble::Wrong(parent) => {
                member.ban(parent);
                self.unlink(blob, parent, receiver);
                self.fill(blob, receiver);
                self.suspect(parent, receiver);
            }
            Trouble::Starved => self.rotate(blob, receiver),
        }
        self.serve_hungry(blob);
    }

    /// The nodes that were said to have sent wrong bytes.
    pub fn suspects(&self) -> Vec<Suspect> {
        let here = self.nodes.iter().map(|(&node, known)| (node, &known.suspected_by));
        let gone = self.gone_suspects.iter().map(|(&node, suspected_by)| (node, suspected_by));
        let suspected = here.chain(gone).filter(|(_, suspected_by)| !suspected_by.is_empty());
        let suspect = |(node, suspected_by): (NodeId, &BTreeSet<NodeId>)| Suspect {
            node,
            reported_by: suspected_by.iter().copied().collect(),
            is_barred: suspected_by.len() >= BARRED_BY,
        };
        suspected.map(suspect).collect()
    }

    /// Somebody has looked at a node, and it is to be trusted again.
    pub fn cleared(&mut self, node: NodeId) {
        self.gone_suspects.remove(&node);
        if let Some(known) = self.nodes.get_mut(&node) {
            known.suspected_by.clear();
            self.slots_changed(node);
        }
    }

    /// The upload slots of a node in the swarm of a blob, and how many of them are taken by children of any blob.
    pub fn slots(&self, blob: BlobId, node: NodeId) -> Option<(usize, usize)> {
        let known = self.nodes.get(&node)?;
        let swarm = self.swarms.get(&blob)?;
        let member = swarm.members.get(&node)?;
        // When nobody has the whole blob any more, what is missing may be where one would rather not fetch it.
        let must_serve = member.is_complete || swarm.complete == 0;
        Some((known.children_max(must_serve), known.children))
    }

    fn enters(&mut self, blob: BlobId, node: NodeId) -> bool {
        let Some(known) = self.nodes.get_mut(&node) else { return false };
        known.blobs.insert(blob);
        self.swarms.entry(blob).or_default();
        true
    }

    fn suspect(&mut self, node: NodeId, reporter: NodeId) {
        // What holds all of it is nobody's to bar; whoever was sent wrong bytes by it fetches from others.
        if node == COORDINATOR {
            return;
        }
        let Some(known) = self.nodes.get_mut(&node) else { return };
        if known.suspected_by.len() < SUSPECTS_TOLD_MAX {
            known.suspected_by.insert(reporter);
        }
        if known.is_barred() {
            self.slots_changed(node);
        }
    }
}
