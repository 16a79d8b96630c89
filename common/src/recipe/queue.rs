//! How a job stands in the queue beside others.

use serde::{Deserialize, Serialize};

use crate::{
    field::{FieldError, check_range},
    id::{JobId, Name},
    time::Timestamp,
};

/// How urgent a job is, from 0 to 100. It grows with the time that a job waits, so that none starves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Priority(u8);

impl Priority {
    /// The most urgent.
    pub const MAX: Self = Self(100);

    /// A checked one; the error says what would be right.
    pub fn new(value: u8) -> Result<Self, FieldError> {
        check_range("priority", value, 0, Self::MAX.0).map(Self)
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self(50)
    }
}

impl TryFrom<u8> for Priority {
    type Error = FieldError;

    fn try_from(value: u8) -> Result<Self, FieldError> {
        Self::new(value)
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> Self {
        priority.0
    }
}

/// How a job stands in the queue beside others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueWishes {
    /// Priority from 0 to 100. Higher goes first and may preempt running jobs, after a checkpoint.
    pub priority: Priority,
    /// Group of the job; a group is watched, cancelled and ranked together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Name>,
    /// Jobs that must complete before this one starts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<JobId>,
    /// Time by which the job should end; it goes ahead of others of its priority once it would be late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
}

impl QueueWishes {
    /// Whether nothing is wished.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
