//! What a job has come to.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    device::Device,
    field::FieldError,
    id::{Epoch, NodeId},
    time::Timestamp,
    trainer::FailureCause,
};

/// Where a job stands. Prints as its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum JobPhase {
    /// It waits for a device.
    Queued,
    /// An attempt has the lease.
    Running,
    /// Somebody paused it; it waits to be resumed.
    Paused,
    /// It was cancelled; the attempt is stopping and still has the lease.
    Cancelling,
    /// All steps are done and the last checkpoint is committed.
    Completed,
    /// It ended because somebody cancelled it.
    Cancelled,
    /// It cannot be done.
    Failed {
        /// Why, for a person.
        why: String,
    },
    /// It crashed too often on too many nodes and is held: I10.
    Poisoned {
        /// The last output, for a person.
        why: String,
    },
}

impl JobPhase {
    /// Whether nothing more can come: I4.
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::Completed | Self::Cancelled | Self::Failed { .. } | Self::Poisoned { .. })
    }

    /// In one word, for programs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed { .. } => "failed",
            Self::Poisoned { .. } => "poisoned",
        }
    }

    /// Why it failed or is held.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Failed { why } | Self::Poisoned { why } => Some(why),
            _ => None,
        }
    }

    /// The phase called `name`; `why` goes with those that have a reason.
    pub fn named(name: &str, why: Option<String>) -> Result<Self, FieldError> {
        let why = why.unwrap_or_default();
        let failed = Self::Failed { why: why.clone() };
        let plain =
            [Self::Queued, Self::Running, Self::Paused, Self::Cancelling, Self::Completed, Self::Cancelled];
        let mut all = plain.into_iter().chain([failed, Self::Poisoned { why }]);
        all.find(|phase| phase.name() == name)
            .ok_or_else(|| FieldError::new("phase", format!("there is no phase `{name}`")))
    }
}

impl fmt::Display for JobPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An attempt that failed. Its node goes by its id; people are shown the name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure<Node = NodeId> {
    /// The attempt's epoch.
    pub epoch: Epoch,
    /// The node on which it ran.
    pub node: Node,
    /// The device there.
    pub device: Device,
    /// Why, as a class.
    pub cause: FailureCause,
    /// Why, for a person, with the last output.
    pub message: String,
    /// When it ended.
    pub at: Timestamp,
}
