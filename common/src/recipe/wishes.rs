//! Where a job may run and where its checkpoints go.

use std::{collections::BTreeMap, num::NonZeroU32};

use serde::{Deserialize, Serialize};

use crate::{
    device::DeviceKind,
    id::{Name, NodeId},
};

/// Labels that people put on nodes: `room = "attic"`.
pub type Labels = BTreeMap<Name, Name>;

/// Where a job may run. Empty lists and tables wish for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceWishes {
    /// Kinds of device that will do; empty: any.
    pub kinds: Vec<DeviceKind>,
    /// Names of nodes that will do; empty: any.
    pub nodes: Vec<Name>,
    /// Labels that the node must carry, each with this value.
    pub labels: Labels,
    /// Names of nodes that will not do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Name>,
    /// The least memory of the device, in bytes; 0: what is estimated from model and batch.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes_min: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A set of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeSelector {
    /// Every node of the fleet, also one that joins later.
    #[default]
    All,
    /// No node.
    None,
    /// The nodes that carry all these labels.
    Labels(Labels),
    /// These nodes.
    Nodes(Vec<NodeId>),
}

impl NodeSelector {
    /// Whether a node with this id and these labels is in the set.
    pub fn selects(&self, node: NodeId, labels: &Labels) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Labels(wanted) => wanted.iter().all(|(key, value)| labels.get(key) == Some(value)),
            Self::Nodes(nodes) => nodes.contains(&node),
        }
    }
}

/// Which of a job's checkpoints are replicated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicateWhich {
    /// Each one.
    #[default]
    Each,
    /// Only the newest.
    Last,
    /// Only the one of the lowest validation loss.
    Best,
}

/// In which numbers nodes that only answer get a job's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaWeights {
    /// As they were trained. A replica is then the whole checkpoint, and any attempt can go on from it.
    #[default]
    F32,
    /// Rounded to bf16, and nothing else: about a sixth of the bytes. Whoever goes on from it gets all of it first.
    Bf16,
}

impl ReplicaWeights {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a job's checkpoints go by themselves, and how much of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplicaPolicy {
    /// The nodes that hold them.
    pub to: NodeSelector,
    /// Which of them.
    pub which: ReplicateWhich,
    /// In which numbers; also for nodes to which a person pushes one.
    #[serde(skip_serializing_if = "ReplicaWeights::is_default")]
    pub weights: ReplicaWeights,
}

/// Which of a job's checkpoints are kept. The newest and the best are kept in any case, and so is what is pinned or
/// needed: by a rollout, by a job that begins with it, by an attempt that goes on from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetainPolicy {
    /// So many of the newest; none: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<NonZeroU32>,
    /// Beside them each whose step is a multiple of this; 0: none. Without `last` it says nothing.
    pub every: u64,
}

impl RetainPolicy {
    /// Whether it keeps everything.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
