//! A job's choice of devices.

use serde::{Deserialize, Serialize};

use crate::{
    device::Device,
    id::{Name, NodeId},
    words::words,
};

/// A device of the fleet as a place for a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub node_name: Name,
    /// The device.
    pub device: Device,
    /// Steps per second that it is expected to make.
    pub steps_per_sec: f64,
    /// How that is known.
    pub known: Known,
    /// Milliseconds until the job could start there, jobs before it included; none: it cannot, as things are.
    pub start_in_ms: Option<u64>,
    /// Milliseconds until it would end there.
    pub end_in_ms: Option<u64>,
    /// What speaks for or against it.
    pub verdict: Verdict,
    /// The same as half a sentence.
    pub why: String,
}

/// How a device's speed is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// This device made such steps.
    Measured,
    /// From a measurement of the device with other steps.
    Estimated,
    /// From its kind alone.
    Guessed,
}

words!(Known, "known": Measured = "measured", Estimated = "estimated", Guessed = "guessed");

/// What speaks for or against a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The job runs there.
    Runs,
    /// The job is to start there.
    Chosen,
    /// The job would end later there than where it is to start.
    EndsLater,
    /// The job would end no later there, but others would.
    BetterForOthers,
    /// The job could run there, and does not wait for a device now: it is paused, pauses after a failure, or comes after
    /// another job.
    Possible,
    /// It is not what the job wishes for.
    Unwished,
    /// The job will not run on this node.
    Excluded,
    /// Its memory is too small.
    TooLittleMemory,
    /// The node is closed to new work.
    Cordoned,
    /// The node's devices are its owner's for now.
    NodeAway,
    /// The node is not connected.
    NotConnected,
}

words!(Verdict, "verdict":
    Runs = "runs",
    Chosen = "chosen",
    EndsLater = "ends_later",
    BetterForOthers = "better_for_others",
    Possible = "possible",
    Unwished = "unwished",
    Excluded = "excluded",
    TooLittleMemory = "too_little_memory",
    Cordoned = "cordoned",
    NodeAway = "node_away",
    NotConnected = "not_connected",
);
