//! The serving side: which child is sent which piece next.

use std::collections::{BTreeMap, VecDeque};

use hatchery_common::{blob::PieceSet, id::NodeId};

use crate::{
    limits::ASKS_PER_CHILD_MAX,
    message::{AskId, Wanted},
    random::Random,
};

/// What one node has of one blob, and the children that ask it for pieces.
///
/// Every child is sent one piece at a time, all children at once; how many there are is for the tracker. Of the pieces
/// that a child will have, it is sent the one that was sent least often: a source thereby sends every piece once before
/// it sends any twice, whoever asks.
#[derive(Debug)]
pub struct Server {
    have: PieceSet,
    /// How often each piece was sent or is being sent to a child that is still here, or has come to have it.
    sent: Vec<u16>,
    children: BTreeMap<NodeId, Child>,
    /// Children that ask and are not being sent anything, in the order of asking.
    ready: VecDeque<NodeId>,
    random: Random,
}

#[derive(Debug)]
struct Child {
    asks: VecDeque<(AskId, Wanted)>,
    /// What it was sent; it is never sent a piece twice.
    given: PieceSet,
    /// What it is being sent.
    sending: Option<(AskId, u32)>,
}

/// A step of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Send {
    /// Send a piece to the child; [`Server::sent`] when it is through.
    Piece {
        child: NodeId,
        /// In answer to which ask.
        ask: AskId,
        index: u32,
    },
    /// Tell the child that its ask has no answer.
    Nothing { child: NodeId, ask: AskId },
}

/// Why an ask is refused; the child does not keep to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskRefused {
    /// Nobody of this name is being served.
    NotAChild,
    /// It has [`ASKS_PER_CHILD_MAX`] asks open.
    TooMany,
    /// It names pieces of a blob of another size.
    NotThisBlob,
}

impl Server {
    /// Serves `have`.
    pub fn new(have: PieceSet, random: Random) -> Self {
        let sent = vec![0; have.count() as usize];
        Self { have, sent, children: BTreeMap::new(), ready: VecDeque::new(), random }
    }

    /// What there is to serve: the first message to a new child.
    pub fn have(&self) -> &PieceSet {
        &self.have
    }

    /// Children that are connected.
    pub fn children(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.children.keys().copied()
    }

    /// How many pieces are being sent: one to each child that asks.
    pub fn sending(&self) -> usize {
        self.children.values().filter(|child| child.sending.is_some()).count()
    }

    /// A child has come; one that was here already begins anew.
    pub fn child_came(&mut self, child: NodeId) {
        self.child_left(child);
        let given = PieceSet::empty(self.have.count());
        self.children.insert(child, Child { asks: VecDeque::new(), given, sending: None });
    }

    /// A child is gone, and with it what it was sent.
    pub fn child_left(&mut self, child: NodeId) {
        for index in self.remove(child).into_iter().flat_map(|gone| gone.given.indexes().collect::<Vec<_>>())
        {
            self.sent[index as usize] -= 1;
        }
    }

    /// A child has the whole blob, and asks no more.
    pub fn child_finished(&mut self, child: NodeId) {
        self.remove(child);
    }

    fn remove(&mut self, child: NodeId) -> Option<Child> {
        self.ready.retain(|&waiting| waiting != child);
        self.children.remove(&child)
    }

    /// A piece is here and checked: true if the children are to be told.
    pub fn has(&mut self, index: u32) -> bool {
        self.have.insert(index)
    }

    /// A piece is not here any more: what the disk gives back is not what it was.
    pub fn lost(&mut self, index: u32) {
        self.have.remove(index);
    }

    /// A child asks for a piece.
    pub fn asked(&mut self, child: NodeId, ask: AskId, wanted: Wanted) -> Result<(), AskRefused> {
        let fits = match &wanted {
            Wanted::One(index) => *index < self.have.count(),
            Wanted::Any(pieces) => pieces.count() == self.have.count(),
        };
        let asking = self.children.get_mut(&child).ok_or(AskRefused::NotAChild)?;
        if !fits {
            return Err(AskRefused::NotThisBlob);
        }
        if asking.asks.len() >= ASKS_PER_CHILD_MAX {
            return Err(AskRefused::TooMany);
        }
        asking.asks.push_back((ask, wanted));
        if asking.asks.len() == 1 && asking.sending.is_none() {
            self.ready.push_back(child);
        }
        Ok(())
    }

    /// A child does not need an ask answered any more.
    pub fn cancelled(&mut self, child: NodeId, ask: AskId) {
        let Some(asking) = self.children.get_mut(&child) else { return };
        let before = asking.asks.len();
        asking.asks.retain(|&(open, _)| open != ask);
        if before > 0 && asking.asks.is_empty() {
            self.ready.retain(|&waiting| waiting != child);
        }
    }

    /// The next step, while there is one to take.
    pub fn next_send(&mut self) -> Option<Send> {
        let child = self.ready.pop_front()?;
        let asking = self.children.get_mut(&child)?;
        let (ask, wanted) = asking.asks.pop_front()?;
        let index = match wanted {
            Wanted::One(index) => (self.have.has(index) && !asking.given.has(index)).then_some(index),
            Wanted::Any(pieces) => {
                let possible = pieces.intersection(&self.have).difference(&asking.given);
                let sent = &self.sent;
                self.random.least(possible.indexes(), |&index| sent[index as usize])
            }
        };
        let Some(index) = index else {
            if !asking.asks.is_empty() {
                self.ready.push_back(child);
            }
            return Some(Send::Nothing { child, ask });
        };
        asking.sending = Some((ask, index));
        asking.given.insert(index);
        self.sent[index as usize] += 1;
        Some(Send::Piece { child, ask, index })
    }

    /// The piece that a child was being sent is through.
    pub fn sent(&mut self, child: NodeId) {
        let Some(asking) = self.children.get_mut(&child) else { return };
        if asking.sending.take().is_some() && !asking.asks.is_empty() {
            self.ready.push_back(child);
        }
    }
}
