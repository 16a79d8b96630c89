//! What happens in a simulation, and when.

use std::cmp::Ordering;

use hatchery_common::id::NodeId;
use hatchery_swarm::{AskId, ToChild, ToParent};

use crate::links::FlowId;

/// From one node to another.
#[derive(Clone, Debug)]
pub enum Message {
    /// A child comes.
    Connect,
    /// A child goes; it has everything, or not.
    Disconnect {
        finished: bool,
    },
    ToParent(ToParent),
    ToChild(ToChild),
    /// The connection to a parent is gone.
    ParentGone,
    Parents(Vec<NodeId>),
}

pub enum Event {
    Deliver { from: usize, to: usize, message: Message },
    FlowEnds { flow: FlowId, number: u64 },
    Tick { node: usize },
    Incident(usize),
}

pub struct Due {
    pub at: f64,
    /// In which order they came to be due.
    pub number: u64,
    pub event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The soonest is the greatest, since a heap gives that first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.number.cmp(&self.number))
    }
}

/// A piece on its way.
#[derive(Clone, Copy)]
pub struct Sending {
    pub number: u64,
    pub from: usize,
    pub to: usize,
    pub ask: AskId,
    pub index: u32,
    pub due: f64,
}
