//! Nodes: what an agent says of its machine.

use serde::{Deserialize, Serialize};

use crate::{device::Device, trainer::Calibration, words::words};

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
    /// The agent's version.
    pub agent_version: String,
    /// The trainer beside it, if there is one that runs.
    pub trainer: TrainerState,
    /// The devices that the trainer can use.
    pub devices: Vec<NodeDevice>,
    /// Devices that are there and cannot be used, and what else cannot be seen or had here, each with the reason.
    pub notes: Vec<String>,
}

/// What a node says of this moment. It comes with each report and is never stored; a figure that a machine cannot read is
/// absent.
///
/// To add a figure: a field here, its place in [`figures`](Self::figures), and the reading of it in the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeMetrics {
    /// Bytes that the agent can still write to the file system of its folder.
    pub disk_free_bytes: Option<u64>,
    /// The system's load average over one minute: tasks that run or wait for a core. A machine whose cores are all busy
    /// has as much as it has cores.
    pub load_average: Option<f64>,
    /// The processor's temperature by its hottest sensor, in degrees Celsius.
    pub temperature_celsius: Option<f64>,
}

impl NodeMetrics {
    /// Each figure with its name, in the order in which people are shown them.
    pub fn figures(&self) -> [(&'static str, Option<Figure>); 3] {
        [
            ("disk free", self.disk_free_bytes.map(Figure::Bytes)),
            ("load", self.load_average.map(Figure::Number)),
            ("temperature", self.temperature_celsius.map(Figure::Celsius)),
        ]
    }
}

/// A number with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Figure {
    /// An amount of data.
    Bytes(u64),
    /// A temperature in degrees Celsius.
    Celsius(f64),
    /// A number without a unit.
    Number(f64),
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
        Self::Missing { why: "the agent has not checked yet".to_owned() }
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

/// Whether a node is given work; for people to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeMode {
    /// It is.
    #[default]
    Open,
    /// It gets no new attempts; those that it has go on.
    Cordoned,
    /// It gets no new attempts, and those that it has go elsewhere, each through a checkpoint.
    Draining,
}

words!(NodeMode, "mode": Open = "open", Cordoned = "cordoned", Draining = "draining");
