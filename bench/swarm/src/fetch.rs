//! How a node asks: as Hatchery does, or at random.

use std::time::Duration;

use hatchery_common::{blob::PieceSet, id::NodeId};
use hatchery_swarm::{Arrival, AskId, Random, Receiver, Step, ToParent, Trouble, Wanted};

/// What a simulated node fetches with.
pub enum Fetch {
    House(Box<Receiver>),
    Random(Box<RandomFetch>),
}

/// Asks every parent for whatever it has and nobody was asked for yet, drawn at random.
pub struct RandomFetch {
    have: PieceSet,
    coming: PieceSet,
    parents: Vec<Parent>,
    asks_given: u64,
    random: Random,
}

struct Parent {
    node: NodeId,
    have: Option<PieceSet>,
    asks: Vec<(AskId, u32)>,
}

/// Asks open at one parent.
const ASKS_PER_PARENT: usize = 2;

impl RandomFetch {
    pub fn new(count: u32, random: Random) -> Self {
        let (have, coming) = (PieceSet::empty(count), PieceSet::empty(count));
        Self { have, coming, parents: Vec::new(), asks_given: 0, random }
    }

    fn forget(&mut self, node: NodeId, stays: bool) {
        let Some(at) = self.parents.iter().position(|parent| parent.node == node) else { return };
        for (_, index) in std::mem::take(&mut self.parents[at].asks) {
            self.coming.remove(index);
        }
        self.parents[at].have = None;
        if !stays {
            self.parents.swap_remove(at);
        }
    }

    fn next(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        for Parent { node, have, asks } in &mut self.parents {
            while let Some(have) = have.as_ref().filter(|_| asks.len() < ASKS_PER_PARENT) {
                let possible = have.difference(&self.have).difference(&self.coming);
                let Some(index) = self.random.least(possible.indexes(), |_| 0) else { break };
                let ask = AskId(self.asks_given);
                self.asks_given += 1;
                self.coming.insert(index);
                asks.push((ask, index));
                let message = ToParent::Ask { ask, wanted: Wanted::One(index) };
                steps.push(Step::Tell { parent: *node, message });
            }
        }
        steps
    }

    fn piece(&mut self, node: NodeId, ask: AskId, index: u32) -> Arrival {
        if let Some(parent) = self.parents.iter_mut().find(|parent| parent.node == node) {
            parent.asks.retain(|open| open.0 != ask);
        }
        self.coming.remove(index);
        if self.have.insert(index) { Arrival::New } else { Arrival::Duplicate }
    }
}

impl Fetch {
    pub fn have(&self) -> &PieceSet {
        match self {
            Self::House(house) => house.have(),
            Self::Random(random) => &random.have,
        }
    }

    pub fn parents(&self) -> Vec<NodeId> {
        match self {
            Self::House(house) => house.parents().collect(),
            Self::Random(random) => random.parents.iter().map(|parent| parent.node).collect(),
        }
    }

    /// Gives those that are new.
    pub fn set_parents(&mut self, nodes: &[NodeId]) -> Vec<NodeId> {
        match self {
            Self::House(house) => house.set_parents(nodes),
            Self::Random(random) => {
                let known: Vec<NodeId> = random.parents.iter().map(|parent| parent.node).collect();
                for gone in known.iter().filter(|node| !nodes.contains(node)) {
                    random.forget(*gone, false);
                }
                let new: Vec<_> = nodes.iter().filter(|node| !known.contains(node)).copied().collect();
                random.parents.extend(new.iter().map(|&node| Parent { node, have: None, asks: Vec::new() }));
                new
            }
        }
    }

    pub fn parent_has_all(&mut self, node: NodeId, have: PieceSet) {
        match self {
            Self::House(house) => {
                house.parent_has_all(node, have);
            }
            Self::Random(random) => {
                if let Some(parent) = random.parents.iter_mut().find(|parent| parent.node == node) {
                    parent.have = Some(have);
                }
            }
        }
    }

    pub fn parent_has(&mut self, node: NodeId, index: u32) {
        match self {
            Self::House(house) => house.parent_has(node, index),
            Self::Random(random) => {
                let parent = random.parents.iter_mut().find(|parent| parent.node == node);
                if let Some(have) = parent.and_then(|parent| parent.have.as_mut()) {
                    have.insert(index);
                }
            }
        }
    }

    pub fn parent_lost(&mut self, node: NodeId) {
        match self {
            Self::House(house) => house.parent_lost(node),
            Self::Random(random) => random.forget(node, true),
        }
    }

    pub fn begins(&mut self, node: NodeId, ask: AskId, index: u32) {
        if let Self::House(house) = self {
            house.begins(node, ask, index);
        }
    }

    pub fn nothing(&mut self, node: NodeId, ask: AskId) {
        if let Self::House(house) = self {
            house.nothing(node, ask);
        }
    }

    pub fn piece(&mut self, node: NodeId, ask: AskId, index: u32, good: bool, now: Duration) -> Arrival {
        match self {
            Self::House(house) => house.piece(node, ask, index, good, now),
            Self::Random(_) if !good => Arrival::Refused,
            Self::Random(random) => random.piece(node, ask, index),
        }
    }

    pub fn ban(&mut self, node: NodeId) -> Step {
        match self {
            Self::House(house) => house.ban(node),
            Self::Random(random) => {
                random.forget(node, false);
                Step::Report(Trouble::Wrong(node))
            }
        }
    }

    pub fn next(&mut self, now: Duration) -> Vec<Step> {
        match self {
            Self::House(house) => house.next(now),
            Self::Random(random) => random.next(),
        }
    }
}
