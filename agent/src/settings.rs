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

/// How an agent is set up. Every key has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSettings {
    /// The folder of everything that the agent keeps: credentials, blobs, checkpoints, corpora, attempts.
    pub state: PathBuf,
    /// The name wished for when it joins; none: the host name.
    pub name: Option<Name>,
    /// Labels given when it joins, beside those of the join token.
    pub labels: Labels,
    /// The trainer; none: `HATCHERY_TRAINER`, else `hatchery-trainer` beside this program.
    pub trainer: Option<PathBuf>,
    /// Whether each device's speed is measured, once, by a short run.
    pub calibrate: bool,
    /// What stays free of the file system, in bytes: below it nothing is fetched and no checkpoint is taken over.
    pub free_disk_bytes_min: u64,
    /// Most bytes of blobs that are kept here, and so of checkpoints; 0: what the disk holds. When little of it is left, what
    /// nobody wishes here goes at once.
    pub blob_bytes_max: u64,
    /// Most bytes of an attempt's checkpoints that wait here while the coordinator is away: beyond it older ones give way
    /// to newer ones.
    pub undelivered_bytes_max: u64,
    /// For how many seconds trainers go on while the coordinator's machine says that no coordinator runs there; 0: no
    /// longer than their lease. While the machine says nothing, trainers stop within their lease in any case.
    pub outage_secs_max: u64,
    /// Models kept loaded between answers.
    pub models_loaded_max: u32,
    /// Answers that the processor makes at the same time; more wait in a queue.
    pub generations_at_once: u32,
    /// Whether a process on an NVIDIA GPU makes answers too, many at the same time, whenever the processor has too many to
    /// make and nothing trains there.
    pub answer_on_gpu: bool,
    /// Trainers that the processor runs at once; 0: one for each eight cores, if there is memory for it.
    pub cpu_trainers: u32,
    /// Threads of a trainer on the processor; 0: as many as there are cores, divided by the trainers.
    pub cpu_threads: u32,
    /// How blobs are exchanged with other nodes.
    pub peers: PeerSettings,
    /// When the machine's devices are the fleet's, and when its owner's.
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
