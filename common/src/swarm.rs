//! What nodes and coordinator tell each other about blobs that nodes fetch from one another.
//!
//! The coordinator is the tracker of all of them: nodes say what they have and want, and are told from whom to fetch it.

use serde::{Deserialize, Serialize};

use crate::id::{BlobId, CertificateId, NodeId};

/// The coordinator where a parent is named: it holds blobs too, and no node has this id.
pub const COORDINATOR: NodeId = NodeId::from_bytes([0; 16]);

/// Most blobs that one node is told of as having, or fetches at once.
pub const SWARM_BLOBS_MAX: usize = 20_000;
/// Most addresses under which a node is tried.
pub const PEER_ADDRESSES_MAX: usize = 8;
/// Most parents in a plan.
pub const PLANNED_PARENTS_MAX: usize = 64;
/// Most certificates that are said to be worth nothing any more.
pub const REVOKED_MAX: usize = 10_000;

/// How a node stands with the blobs that nodes exchange: those of more than one piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SwarmReport {
    /// How others reach it; absent: as was said before in this session.
    pub reach: Option<PeerReach>,
    /// The blobs that it has as a whole; absent: those that were said before in this session.
    pub holds: Option<Vec<BlobId>>,
    /// The blobs that it fetches.
    pub wants: Vec<WantedBlob>,
    /// What its link sends, while it is busy; absent: not measured since the last report.
    pub up_bytes_per_sec: Option<f64>,
    /// What its link receives.
    pub down_bytes_per_sec: Option<f64>,
    /// Bytes of pieces that it has sent since its agent began.
    pub sent_bytes: u64,
    /// Bytes of pieces that came from others.
    pub received_bytes: u64,
}

/// How others reach a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerReach {
    /// The port on which it serves; none: it serves nobody.
    pub port: Option<u16>,
    /// `host:port` by which it believes that others reach it, the best first.
    pub addresses: Vec<String>,
    /// Most nodes that fetch from it at once; none: the tracker decides.
    pub children_max: Option<u32>,
}

/// A blob on its way to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedBlob {
    /// Which.
    pub blob: BlobId,
    /// Pieces of it that are there.
    pub held: u32,
    /// Which fetch of this node's it is: another number is another fetch, which knows no plan yet.
    pub fetch: u64,
}

/// What a receiver has to say about its parents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trouble {
    /// A parent is silent for three times as long as a piece should take.
    Stalled(NodeId),
    /// A parent takes much longer for a piece than the others.
    Slow(NodeId),
    /// A parent has sent a piece that is not what its hash says; it is banned here.
    Wrong(NodeId),
    /// No parent has anything that is missing.
    Starved,
}

/// Why a receiver has no parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wait {
    /// No node that it may fetch from has anything of the blob.
    NoHolder,
    /// All upload slots are taken; it is its turn when one is given back.
    NoSlot,
}

/// From whom a node is to fetch a blob. A newer plan replaces an older one as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchPlan {
    /// The blob.
    pub blob: BlobId,
    /// From whom; none while it waits.
    pub parents: Vec<PlannedParent>,
    /// Why there is no parent yet.
    pub waits: Option<Wait>,
}

/// Somebody to fetch from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedParent {
    /// Who; [`COORDINATOR`] for the coordinator itself.
    pub node: NodeId,
    /// Where, `host:port`, the best first. Of the coordinator everybody knows that.
    pub addresses: Vec<String>,
}

/// The certificates of agents that were revoked: who bears one is served nothing.
pub type Revoked = Vec<CertificateId>;
