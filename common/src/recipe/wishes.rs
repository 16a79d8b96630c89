//! Where a job may run and where its checkpoints go.

use std::{collections::BTreeMap, num::NonZeroU32};

use serde::{Deserialize, Serialize};

use crate::{
    device::DeviceKind,
    id::{Name, NodeId},
};

/// Labels that people put on nodes: `room = "attic"`.
pub type Labels = BTreeMap<Name, Name>;

/// Where a job may run. Empty lists and tables allow everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceWishes {
    /// Allowed kinds of device; empty: any.
    pub kinds: Vec<DeviceKind>,
    /// Names of allowed nodes; empty: any.
    pub nodes: Vec<Name>,
    /// Required node labels.
    pub labels: Labels,
    /// Names of excluded nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Name>,
    /// Minimum device memory in bytes; 0: estimated from model and batch.
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
    /// Every node of the fleet, including those that join later.
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
    /// Every checkpoint.
    #[default]
    Each,
    /// Only the newest.
    Last,
    /// Only the checkpoint with the lowest validation loss.
    Best,
}

/// Precision of replicated weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaWeights {
    /// As trained: a replica is the whole checkpoint, and any attempt can resume from it.
    #[default]
    F32,
    /// Only the weights, rounded to bf16: about a sixth of the bytes. An attempt that resumes there fetches the whole
    /// checkpoint first.
    Bf16,
}

impl ReplicaWeights {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Automatic replication of a job's checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplicaPolicy {
    /// Nodes that receive the checkpoints.
    pub to: NodeSelector,
    /// Checkpoints to replicate.
    pub which: ReplicateWhich,
    /// Precision of the weights; applies to pushed checkpoints, too.
    #[serde(skip_serializing_if = "ReplicaWeights::is_default")]
    pub weights: ReplicaWeights,
}

/// Retention of a job's checkpoints. Always kept: the newest, the best, pinned ones, and those that a rollout, a job
/// or an attempt needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetainPolicy {
    /// Number of newest checkpoints to keep; unset: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<NonZeroU32>,
    /// Also keep each checkpoint whose step is a multiple of this; 0: none. Has no effect without `last`.
    pub every: u64,
}

impl RetainPolicy {
    /// Whether it keeps everything.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
