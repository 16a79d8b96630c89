//! What an agent says of its machine.

use hatchery_common::{
    availability::{Away, LocalTime},
    device::Device,
    field::{FieldError, check_range},
    node::{Inventory, NodeDevice, NodeMetrics, TrainerState},
    time::Timestamp,
    trainer::Calibration,
};

use super::fields::{amount, at_most, each, missing, optional, parsed};
use crate::v1::{self, inventory};

/// Most devices of a node.
pub const DEVICES_MAX: usize = Device::COUNT_MAX;
/// Most notes about devices that cannot be used.
pub const NOTES_MAX: usize = 64;
/// Most bytes of a node's metrics as JSON.
const METRICS_BYTES_MAX: usize = 4 * 1024;
/// No clock is further from UTC, in seconds.
const UTC_OFFSET_SECS_MAX: i32 = 26 * 3600;

impl From<Calibration> for v1::Calibration {
    fn from(calibration: Calibration) -> Self {
        Self {
            device: calibration.device.to_string(),
            steps_per_sec: calibration.steps_per_sec,
            flops_per_sec: calibration.flops_per_sec,
            version: calibration.version,
        }
    }
}

impl TryFrom<v1::Calibration> for Calibration {
    type Error = FieldError;

    fn try_from(calibration: v1::Calibration) -> Result<Self, FieldError> {
        // Finish times are estimated by dividing by these.
        for (field, speed) in
            [("steps_per_sec", calibration.steps_per_sec), ("flops_per_sec", calibration.flops_per_sec)]
        {
            if !(speed.is_finite() && speed > 0.0) {
                return Err(FieldError::new(field, format!("must be a finite number above 0, not {speed}")));
            }
        }
        Ok(Self {
            device: parsed("device", &calibration.device)?,
            steps_per_sec: calibration.steps_per_sec,
            flops_per_sec: calibration.flops_per_sec,
            version: calibration.version,
        })
    }
}

impl From<NodeDevice> for v1::NodeDevice {
    fn from(device: NodeDevice) -> Self {
        Self {
            device: device.device.to_string(),
            name: device.name,
            memory_bytes: device.memory_bytes,
            bf16: device.bf16,
            driver: device.driver,
            calibration: device.calibration.map(Into::into),
            power_watts_max: device.power_watts_max,
        }
    }
}

impl TryFrom<v1::NodeDevice> for NodeDevice {
    type Error = FieldError;

    fn try_from(device: v1::NodeDevice) -> Result<Self, FieldError> {
        Ok(Self {
            device: parsed("device", &device.device)?,
            name: device.name,
            memory_bytes: device.memory_bytes,
            bf16: device.bf16,
            driver: device.driver,
            power_watts_max: device
                .power_watts_max
                .map(|watts| amount("power_watts_max", watts))
                .transpose()?,
            calibration: optional("calibration", device.calibration)?,
        })
    }
}

impl From<Inventory> for v1::Inventory {
    fn from(inventory: Inventory) -> Self {
        let trainer = match inventory.trainer {
            TrainerState::Ready { version, libtorch } => {
                inventory::Trainer::TrainerReady(inventory::TrainerReady { version, libtorch })
            }
            TrainerState::Missing { why } => {
                inventory::Trainer::TrainerMissing(inventory::TrainerMissing { why })
            }
        };
        Self {
            hostname: inventory.hostname,
            os: inventory.os,
            architecture: inventory.architecture,
            cpu_model: inventory.cpu_model,
            cores: inventory.cores,
            memory_bytes: inventory.memory_bytes,
            disk_bytes: inventory.disk_bytes,
            agent_version: inventory.agent_version,
            trainer: Some(trainer),
            devices: inventory.devices.into_iter().map(Into::into).collect(),
            notes: inventory.notes,
        }
    }
}

impl TryFrom<v1::Inventory> for Inventory {
    type Error = FieldError;

    fn try_from(inventory: v1::Inventory) -> Result<Self, FieldError> {
        at_most("notes", inventory.notes.len(), NOTES_MAX, "entries")?;
        let trainer = match inventory.trainer.ok_or_else(|| missing("trainer"))? {
            inventory::Trainer::TrainerReady(ready) => {
                TrainerState::Ready { version: ready.version, libtorch: ready.libtorch }
            }
            inventory::Trainer::TrainerMissing(missing) => TrainerState::Missing { why: missing.why },
        };
        Ok(Self {
            hostname: inventory.hostname,
            os: inventory.os,
            architecture: inventory.architecture,
            cpu_model: inventory.cpu_model,
            cores: inventory.cores,
            memory_bytes: inventory.memory_bytes,
            disk_bytes: inventory.disk_bytes,
            agent_version: inventory.agent_version,
            trainer,
            devices: each("devices", inventory.devices, DEVICES_MAX)?,
            notes: inventory.notes,
        })
    }
}

/// A node's metrics as the wire has them.
pub(super) fn metrics_json(metrics: &NodeMetrics) -> String {
    serde_json::to_string(metrics).expect("numbers are always JSON")
}

/// Reads a message's field `metrics_json`.
pub(super) fn metrics(json: &str) -> Result<NodeMetrics, FieldError> {
    at_most("metrics_json", json.len(), METRICS_BYTES_MAX, "bytes")?;
    serde_json::from_str(json)
        .map_err(|error| FieldError::new("metrics_json", format!("is not an object of numbers: {error}")))
}

impl From<Away> for v1::Away {
    fn from(away: Away) -> Self {
        Self { reason: away.reason.name().to_owned(), until: away.until.map(Into::into) }
    }
}

impl TryFrom<v1::Away> for Away {
    type Error = FieldError;

    fn try_from(away: v1::Away) -> Result<Self, FieldError> {
        Ok(Self { reason: parsed("reason", &away.reason)?, until: optional("until", away.until)? })
    }
}

impl From<LocalTime> for v1::LocalTime {
    fn from(time: LocalTime) -> Self {
        Self { at_ms: time.at.0, utc_offset_secs: time.utc_offset_secs }
    }
}

impl TryFrom<v1::LocalTime> for LocalTime {
    type Error = FieldError;

    fn try_from(time: v1::LocalTime) -> Result<Self, FieldError> {
        let (low, high) = (-UTC_OFFSET_SECS_MAX, UTC_OFFSET_SECS_MAX);
        let utc_offset_secs = check_range("utc_offset_secs", time.utc_offset_secs, low, high)?;
        Ok(Self { at: Timestamp(time.at_ms), utc_offset_secs })
    }
}
