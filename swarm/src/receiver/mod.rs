//! The fetching side: which piece is asked of which parent next.

mod choice;
mod parent;

use std::{collections::BTreeSet, time::Duration};

use hatchery_common::{blob::PieceSet, id::NodeId, swarm::Trouble};

use crate::{
    limits::STARVED_AFTER,
    message::{AskId, ToParent, Wanted},
    random::Random,
};
use parent::{Asked, Parent};

/// One blob on its way to one node. It says what to ask; what it hears is told to it. Times are since any fixed moment.
#[derive(Debug)]
pub struct Receiver {
    have: PieceSet,
    /// Pieces that are known to be coming, or asked for one by one; and how many times each.
    coming: PieceSet,
    copies: Vec<u8>,
    /// How many parents have each piece.
    holders: Vec<u16>,
    /// What parents have that do not have the whole blob.
    shared: PieceSet,
    parents: Vec<Parent>,
    banned: BTreeSet<NodeId>,
    asks_given: u64,
    /// Since when no parent has had anything that is missing.
    starved_since: Option<Duration>,
    random: Random,
}

/// What the receiver wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Say this to a parent.
    Tell { parent: NodeId, message: ToParent },
    /// Report this to the tracker.
    Report(Trouble),
}

/// What became of a piece that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It was missing: write it, and tell the children.
    New,
    /// It is here already: drop it.
    Duplicate,
    /// Its bytes are wrong, or nobody asked for it: drop it, and the connection to its sender.
    Refused,
}

impl Receiver {
    /// Begins with what is here already.
    pub fn new(have: PieceSet, random: Random) -> Self {
        let count = have.count();
        Self {
            coming: PieceSet::empty(count),
            copies: vec![0; count as usize],
            holders: vec![0; count as usize],
            shared: PieceSet::empty(count),
            have,
            parents: Vec::new(),
            banned: BTreeSet::new(),
            asks_given: 0,
            starved_since: None,
            random,
        }
    }

    pub fn have(&self) -> &PieceSet {
        &self.have
    }

    /// Whether all of the blob is here.
    pub fn is_complete(&self) -> bool {
        self.have.is_full()
    }

    /// The parents that it knows and has not banned.
    pub fn parents(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.parents.iter().map(|parent| parent.node)
    }

    /// The tracker's newest plan: from now on these are the parents. Gives those that are new, to connect to; a banned
    /// one stays banned.
    pub fn set_parents(&mut self, nodes: &[NodeId]) -> Vec<NodeId> {
        let old: Vec<NodeId> = self.parents().filter(|node| !nodes.contains(node)).collect();
        for node in old {
            self.remove_parent(node);
        }
        let new = |node: &&NodeId| !self.banned.contains(node) && self.position(**node).is_none();
        let new: Vec<NodeId> = nodes.iter().filter(new).copied().collect();
        self.parents.extend(new.iter().copied().map(Parent::new));
        new
    }

    /// A parent is connected, and says what it has. False if these are pieces of another blob, or it is no parent.
    pub fn parent_has_all(&mut self, node: NodeId, have: PieceSet) -> bool {
        let Some(at) = self.position(node).filter(|_| have.count() == self.have.count()) else {
            return false;
        };
        self.disconnect(at);
        for index in have.indexes() {
            self.holders[index as usize] += 1;
        }
        if !have.is_full() {
            self.shared = self.shared.union(&have);
        }
        self.parents[at].have = Some(have);
        true
    }

    /// A parent has one more piece.
    pub fn parent_has(&mut self, node: NodeId, index: u32) {
        let Some(at) = self.position(node) else { return };
        let Some(have) = &mut self.parents[at].have else { return };
        if have.insert(index) {
            self.holders[index as usize] += 1;
            if have.is_full() {
                self.find_shared();
            } else {
                self.shared.insert(index);
            }
        }
    }

    /// The connection to a parent is gone. It stays a parent; connect again and tell what it has then.
    pub fn parent_lost(&mut self, node: NodeId) {
        if let Some(at) = self.position(node) {
            self.disconnect(at);
        }
    }

    /// A parent begins to answer an ask with this piece.
    pub fn begins(&mut self, node: NodeId, ask: AskId, index: u32) {
        let Some(at) = self.position(node) else { return };
        let Some(asked) = self.parents[at].asks.iter_mut().find(|asked| asked.ask == ask) else { return };
        asked.begun = true;
        if asked.index.is_none() && index < self.have.count() {
            asked.index = Some(index);
            self.comes(index);
        }
    }

    /// A parent has nothing for an ask.
    pub fn nothing(&mut self, node: NodeId, ask: AskId) {
        let Some(at) = self.position(node) else { return };
        let Some(place) = self.parents[at].asks.iter().position(|asked| asked.ask == ask) else { return };
        let asked = self.parents[at].asks.remove(place);
        self.release(&asked);
        // It said that it had these pieces: do not ask it for them again.
        let Some(have) = &mut self.parents[at].have else { return };
        let refused = match asked.wanted {
            Wanted::One(index) if have.has(index) => vec![index],
            Wanted::One(_) => Vec::new(),
            Wanted::Any(pieces) => pieces.intersection(have).indexes().collect(),
        };
        for &index in &refused {
            have.remove(index);
            self.holders[index as usize] -= 1;
        }
        if !refused.is_empty() {
            self.find_shared();
        }
    }

    /// A piece has come; `is_good` says whether its bytes are what the manifest says.
    pub fn piece(&mut self, node: NodeId, ask: AskId, index: u32, is_good: bool, now: Duration) -> Arrival {
        let Some(at) = self.position(node) else { return Arrival::Refused };
        if !is_good || index >= self.have.count() {
            return Arrival::Refused;
        }
        let parent = &mut self.parents[at];
        parent.delivered(now);
        if let Some(place) = parent.asks.iter().position(|asked| asked.ask == ask) {
            let asked = parent.asks.remove(place);
            self.release(&asked);
        }
        if self.have.insert(index) { Arrival::New } else { Arrival::Duplicate }
    }

    /// A piece is here that came from somebody who is no parent any more; false if it was here already.
    pub fn found(&mut self, index: u32) -> bool {
        index < self.have.count() && self.have.insert(index)
    }

    /// A parent does not keep to the protocol, or sends bytes that are not what it says: never again.
    pub fn ban(&mut self, node: NodeId) -> Step {
        self.remove_parent(node);
        self.banned.insert(node);
        Step::Report(Trouble::Wrong(node))
    }

    /// A piece is not here any more: what the disk gives back is not what it was.
    pub fn lost(&mut self, index: u32) {
        self.have.remove(index);
    }

    /// What to do now. Call it after everything that was told, and at [`Receiver::wake_at`].
    pub fn next(&mut self, now: Duration) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.is_complete() {
            return steps;
        }
        self.look_for_stalls(now, &mut steps);
        self.look_for_slow(&mut steps);
        self.cancel_superfluous(&mut steps);
        self.ask(now, &mut steps);
        self.look_for_hunger(now, &mut steps);
        steps
    }

    /// When to call [`Receiver::next`] at the latest.
    pub fn wake_at(&mut self, now: Duration) -> Option<Duration> {
        if self.is_complete() {
            return None;
        }
        let typical = self.typical_secs();
        let parents = self.parents.iter_mut();
        let times = parents.flat_map(|parent| [parent.stalls_at(typical), parent.rested_at(now)]);
        times.flatten().chain(self.starved_since.map(|since| since + STARVED_AFTER)).min()
    }

    fn look_for_stalls(&mut self, now: Duration, steps: &mut Vec<Step>) {
        let typical = self.typical_secs();
        for at in 0..self.parents.len() {
            let parent = &mut self.parents[at];
            parent.rested_at(now);
            if parent.stalls_at(typical).is_none_or(|stalls_at| now < stalls_at) {
                continue;
            }
            let parent = &mut self.parents[at];
            let (node, given_back) = (parent.node, parent.stalled(now));
            for asked in given_back {
                self.release(&asked);
                steps.push(Step::Tell { parent: node, message: ToParent::Cancel { ask: asked.ask } });
            }
            steps.push(Step::Report(Trouble::Stalled(node)));
        }
    }

    fn look_for_slow(&mut self, steps: &mut Vec<Step>) {
        let Some(typical) = self.typical_secs() else { return };
        let slow =
            self.parents.iter_mut().filter_map(|parent| parent.is_slow(typical).then_some(parent.node));
        steps.extend(slow.map(|node| Step::Report(Trouble::Slow(node))));
    }

    /// Takes back asks for what has come from elsewhere.
    fn cancel_superfluous(&mut self, steps: &mut Vec<Step>) {
        for at in 0..self.parents.len() {
            let parent = &mut self.parents[at];
            let have = &self.have;
            let is_superfluous =
                |asked: &Asked| !asked.begun && asked.index.is_some_and(|index| have.has(index));
            if !parent.asks.iter().any(is_superfluous) {
                continue;
            }
            let (node, asks) = (parent.node, std::mem::take(&mut parent.asks));
            let (superfluous, kept): (Vec<_>, Vec<_>) = asks.into_iter().partition(is_superfluous);
            self.parents[at].asks = kept;
            for asked in superfluous {
                self.release(&asked);
                steps.push(Step::Tell { parent: node, message: ToParent::Cancel { ask: asked.ask } });
            }
        }
    }

    fn look_for_hunger(&mut self, now: Duration, steps: &mut Vec<Step>) {
        if self.parents.iter().any(|parent| !parent.asks.is_empty()) {
            self.starved_since = None;
            return;
        }
        let since = *self.starved_since.get_or_insert(now);
        if now >= since + STARVED_AFTER {
            self.starved_since = Some(now);
            steps.push(Step::Report(Trouble::Starved));
        }
    }

    fn remove_parent(&mut self, node: NodeId) {
        if let Some(at) = self.position(node) {
            self.disconnect(at);
            self.parents.swap_remove(at);
        }
    }

    /// Forgets what a parent has and what it was asked for.
    fn disconnect(&mut self, at: usize) {
        for asked in std::mem::take(&mut self.parents[at].asks) {
            self.release(&asked);
        }
        if let Some(have) = self.parents[at].have.take() {
            for index in have.indexes() {
                self.holders[index as usize] -= 1;
            }
            self.find_shared();
        }
    }

    fn find_shared(&mut self) {
        let partial = self.parents.iter().filter_map(|parent| parent.have.as_ref());
        let partial = partial.filter(|have| !have.is_full());
        self.shared = partial.fold(PieceSet::empty(self.have.count()), |all, have| all.union(have));
    }

    /// One more copy of a piece is on its way.
    fn comes(&mut self, index: u32) {
        self.copies[index as usize] += 1;
        self.coming.insert(index);
    }

    /// An ask is over, whatever became of it.
    fn release(&mut self, asked: &Asked) {
        if let Some(index) = asked.index {
            let copies = &mut self.copies[index as usize];
            *copies -= 1;
            if *copies == 0 {
                self.coming.remove(index);
            }
        }
    }

    /// How long a piece takes from a parent, as a mean over those that are known.
    fn typical_secs(&self) -> Option<f64> {
        let known: Vec<f64> = self.parents.iter().filter_map(|parent| parent.piece_secs.get()).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }

    fn position(&self, node: NodeId) -> Option<usize> {
        self.parents.iter().position(|parent| parent.node == node)
    }
}
