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
    /// Allowed kinds of device; empty: all.
    pub kinds: Vec<DeviceKind>,
    /// Allowed nodes, by name; empty: all.
    pub nodes: Vec<Name>,
    /// Labels that the node must have, with these values.
    pub labels: Labels,
    /// Excluded nodes, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Name>,
    /// The device's least memory, in bytes; 0: estimated from model and batch.
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
    /// Every node of the fleet, present and future.
    #[default]
    All,
    /// No node.
    None,
    /// The nodes with all these labels.
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
    /// All of them.
    #[default]
    Each,
    /// Only the newest.
    Last,
    /// Only the one with the lowest validation loss.
    Best,
}

/// The precision of the weights on nodes that only answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaWeights {
    /// As trained. A replica is the whole checkpoint, and any node can continue the job from it at once.
    #[default]
    F32,
    /// Rounded to bf16, without the optimizer: about a sixth of the bytes. A node that continues the job fetches the rest first.
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
    /// The nodes that get the checkpoints.
    pub to: NodeSelector,
    /// The checkpoints that they get.
    pub which: ReplicateWhich,
    /// The precision on nodes that only answer, also for a checkpoint that a person pushes.
    #[serde(skip_serializing_if = "ReplicaWeights::is_default")]
    pub weights: ReplicaWeights,
}

/// Which of a job's checkpoints are kept. The newest and the best are kept in any case, and so is what is pinned or
/// needed: by a rollout, by a job that begins with it, by an attempt that goes on from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetainPolicy {
    /// The number of newest checkpoints to keep; not set: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<NonZeroU32>,
    /// With `last`: keep also each checkpoint whose step is a multiple of this; 0: none.
    pub every: u64,
}

impl RetainPolicy {
    /// Whether it keeps everything.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
