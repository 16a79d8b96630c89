//! How an agent is set up: the section `agent` of files, environment and flags.

use std::{
    env,
    path::{Path, PathBuf},
};

use hatchery_common::{
    field::{FieldError, check_range},
    id::Name,
    recipe::Labels,
};
use serde::{Deserialize, Serialize};

use crate::{
    machine::{availability::AvailabilitySettings, cpu_partition::CPU_TRAINERS_MAX},
    peers::PeerSettings,
};

/// The environment variable that names the trainer.
pub const TRAINER_VARIABLE: &str = "HATCHERY_TRAINER";
/// The trainer's file name.
const TRAINER_FILE: &str = "hatchery-trainer";
/// Most models that may be kept loaded.
const MODELS_LOADED_MAX: u32 = 64;
/// Most answers that may be made at once.
const GENERATIONS_AT_ONCE_MAX: u32 = 64;
/// Most threads of a trainer on the processor.
const CPU_THREADS_MAX: u32 = 4096;

/// Settings of an agent. Every key has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSettings {
    /// State folder: credentials, blobs, checkpoints, corpora and attempts.
    pub state: PathBuf,
    /// Node name requested on joining; unset: the host name.
    pub name: Option<Name>,
    /// Labels set on joining, in addition to those of the join string.
    pub labels: Labels,
    /// Trainer program; unset: `HATCHERY_TRAINER`, else `hatchery-trainer` next to this program.
    pub trainer: Option<PathBuf>,
    /// Whether to measure each device's speed once, by a short run.
    pub calibrate: bool,
    /// Disk space that stays free, in bytes; below it nothing is fetched and no checkpoint is accepted.
    pub free_disk_bytes_min: u64,
    /// Maximum total size of blobs, and so of checkpoints, in bytes; 0: the disk's size. When space runs low,
    /// unwanted blobs are removed at once.
    pub blob_bytes_max: u64,
    /// Maximum size in bytes of an attempt's checkpoints that wait for the coordinator; beyond it newer ones replace
    /// older ones.
    pub undelivered_bytes_max: u64,
    /// Seconds for which trainers continue while the coordinator's machine reports that no coordinator runs; 0: until
    /// their lease ends. If that machine does not answer at all, trainers stop when their lease ends.
    pub outage_secs_max: u64,
    /// Number of models kept loaded between answers; 1 to 64.
    pub models_loaded_max: u32,
    /// Number of answers that the processor generates at once; more wait in a queue.
    pub generations_at_once: u32,
    /// Whether an NVIDIA GPU also generates answers, many at once, when the processor has too many and no job trains
    /// on the GPU.
    pub answer_on_gpu: bool,
    /// Number of trainers on the processor; 0: one per eight cores, memory permitting.
    pub cpu_trainers: u32,
    /// Threads per trainer on the processor; 0: all cores, divided among the trainers.
    pub cpu_threads: u32,
    /// Exchange of blobs with other nodes.
    pub peers: PeerSettings,
    /// When this machine may train.
    pub availability: AvailabilitySettings,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            state: default_state(),
            name: None,
            labels: Labels::new(),
            trainer: None,
            calibrate: true,
            free_disk_bytes_min: 1 << 30,
            blob_bytes_max: 0,
            undelivered_bytes_max: 8 << 30,
            outage_secs_max: 3600,
            models_loaded_max: 2,
            generations_at_once: 2,
            answer_on_gpu: true,
            cpu_trainers: 0,
            cpu_threads: 0,
            peers: PeerSettings::default(),
            availability: AvailabilitySettings::default(),
        }
    }
}

impl AgentSettings {
    /// Checks every key; the error names the first wrong one.
    pub fn check(&self) -> Result<(), FieldError> {
        if self.state.as_os_str().is_empty() {
            return Err(FieldError::new("state", "must name a folder"));
        }
        check_range("models_loaded_max", self.models_loaded_max, 1, MODELS_LOADED_MAX)?;
        check_range("generations_at_once", self.generations_at_once, 1, GENERATIONS_AT_ONCE_MAX)?;
        check_range("cpu_trainers", self.cpu_trainers, 0, CPU_TRAINERS_MAX)?;
        check_range("cpu_threads", self.cpu_threads, 0, CPU_THREADS_MAX)?;
        self.peers.check().map_err(|error| error.within("peers"))?;
        self.availability.check().map_err(|error| error.within("availability"))
    }

    /// Where the trainer should be. Whether it is there, and runs, is for the inventory to find out.
    pub fn trainer_path(&self) -> PathBuf {
        let beside = || env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
        self.trainer
            .clone()
            .or_else(|| env::var_os(TRAINER_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from))
            .or_else(|| beside().map(|folder| folder.join(TRAINER_FILE)))
            .unwrap_or_else(|| PathBuf::from(TRAINER_FILE))
    }

    /// The name to ask for when joining.
    pub fn wished_name(&self) -> Name {
        self.name
            .clone()
            .unwrap_or_else(|| Name::from_lossy(&sysinfo::System::host_name().unwrap_or_default()))
    }
}

/// `$XDG_STATE_HOME/hatchery/agent`, else `~/.local/state/hatchery/agent`.
fn default_state() -> PathBuf {
    let folder = |variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/state")));
    base.unwrap_or_else(|| PathBuf::from(".")).join("hatchery/agent")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_right_and_wrong_values_name_the_key() {
        assert_eq!(AgentSettings::default().check(), Ok(()));
        let wrong = AgentSettings { models_loaded_max: 0, ..Default::default() };
        assert_eq!(wrong.check().unwrap_err().field, "models_loaded_max");
        let wrong = AgentSettings { state: PathBuf::new(), ..Default::default() };
        assert_eq!(wrong.check().unwrap_err().field, "state");
        let named = AgentSettings { trainer: Some("/opt/trainer".into()), ..Default::default() };
        assert_eq!(named.trainer_path(), PathBuf::from("/opt/trainer"));
    }
}
