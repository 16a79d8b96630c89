//! Nodes: what an agent says of its machine.

use serde::{Deserialize, Serialize};

use crate::{device::Device, trainer::Calibration};

/// What a machine is and has, as its agent read it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// The machine's own name.
    pub hostname: String,
    /// Operating system and its version: `Debian GNU/Linux 12`.
    pub os: String,
    /// Processor architecture: `x86_64`, `aarch64`.
    pub architecture: String,
    /// The processor's model name.
    pub cpu_model: String,
    /// Cores that the agent may use.
    pub cores: u32,
    /// Main memory.
    pub memory_bytes: u64,
    /// Size of the file system that holds the agent's folder.
    pub disk_bytes: u64,
    /// What is free of it.
    pub disk_free_bytes: u64,
    /// The agent's version.
    pub agent_version: String,
    /// The trainer beside it, if there is one that runs.
    pub trainer: TrainerState,
    /// The devices that the trainer can use.
    pub devices: Vec<NodeDevice>,
    /// Devices that are there and cannot be used, each with the reason.
    pub notes: Vec<String>,
}

/// Whether a node can train.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TrainerState {
    /// It can.
    Ready {
        /// The trainer's version.
        version: String,
        /// The libtorch version.
        libtorch: String,
    },
    /// It cannot; it holds replicas and answers all the same.
    Missing {
        /// Why not, and what would change that.
        why: String,
    },
}

impl Default for TrainerState {
    fn default() -> Self {
        Self::Missing { why: "the agent has not looked yet".to_owned() }
    }
}

/// A device of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeDevice {
    /// Which.
    pub device: Device,
    /// Its model name.
    pub name: String,
    /// Its memory; for a CPU, the machine's.
    pub memory_bytes: u64,
    /// Whether bf16 matrix products are supported in hardware.
    pub bf16: bool,
    /// The driver's version, where it has one.
    pub driver: Option<String>,
    /// The most power that it may draw, where its driver says so.
    pub power_watts_max: Option<f64>,
    /// Its measured speed, once it is measured.
    pub calibration: Option<Calibration>,
}
