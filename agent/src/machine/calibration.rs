//! The measured speed of each device, kept until trainer, libtorch or hardware change.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::UNIX_EPOCH,
};

use hatchery_common::{
    device::{Device, DeviceKind},
    durable::{self, FileError},
    node::{Inventory, NodeDevice, TrainerState},
    trainer::Calibration,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::gpu_guard::Gpus;
use crate::{inbox::Measurement, platform::Platform};

const FILE: &str = "calibration.json";
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a measurement is good for. The trainer's build stands for the version of its measuring code too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Conditions {
    trainer: String,
    trainer_bytes: u64,
    trainer_modified_secs: u64,
    libtorch: String,
    device: String,
    memory_bytes: u64,
    driver: Option<String>,
    cores: u32,
    /// Of a processor, those it was measured with; 0: as many as there are cores.
    #[serde(default)]
    threads: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    conditions: Conditions,
    calibration: Calibration,
}

/// The measurements that are kept in a folder.
#[derive(Clone, Debug)]
pub(crate) struct CalibrationCache {
    path: PathBuf,
    trainer: PathBuf,
    cpu_threads: u32,
    kept: BTreeMap<String, Kept>,
}

impl CalibrationCache {
    /// Reads what is kept in the agent's folder. A file that cannot be understood counts as none.
    pub(crate) fn open(state: &Path, trainer: &Path, cpu_threads: u32) -> Self {
        let path = state.join(FILE);
        let text = durable::read_limited(&path, FILE_BYTES_MAX).ok();
        let kept = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { path, trainer: trainer.to_owned(), cpu_threads, kept }
    }

    /// Gives each device the measurement that still holds for it.
    pub(crate) fn fill(&self, inventory: &mut Inventory) {
        let conditions: Vec<Option<Conditions>> =
            inventory.devices.iter().map(|device| self.conditions(inventory, device)).collect();
        for (device, conditions) in inventory.devices.iter_mut().zip(conditions) {
            let kept = self.kept.get(&device.device.to_string());
            device.calibration = kept
                .filter(|kept| Some(&kept.conditions) == conditions.as_ref())
                .map(|kept| kept.calibration.clone());
        }
    }

    /// Keeps a new measurement.
    pub(crate) fn keep(&mut self, inventory: &Inventory, calibration: Calibration) -> Result<(), FileError> {
        let device = inventory.devices.iter().find(|device| device.device == calibration.device);
        let Some(conditions) = device.and_then(|device| self.conditions(inventory, device)) else {
            return Ok(());
        };
        self.kept.insert(calibration.device.to_string(), Kept { conditions, calibration });
        let text = serde_json::to_vec_pretty(&self.kept).expect("a table of text and numbers is always JSON");
        durable::write_atomically(&self.path, &text)
    }

    fn conditions(&self, inventory: &Inventory, device: &NodeDevice) -> Option<Conditions> {
        let TrainerState::Ready { version, libtorch } = &inventory.trainer else { return None };
        let file = fs::metadata(&self.trainer).ok()?;
        let modified = file.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Conditions {
            trainer: version.clone(),
            trainer_bytes: file.len(),
            trainer_modified_secs: modified.as_secs(),
            libtorch: libtorch.clone(),
            device: device.name.clone(),
            memory_bytes: device.memory_bytes,
            driver: device.driver.clone(),
            cores: inventory.cores,
            threads: if device.device.kind == DeviceKind::Cpu { self.cpu_threads } else { 0 },
        })
    }
}

/// Measures one device after the other, whenever the machine has nothing else to do.
pub(crate) struct Calibrator {
    platform: Arc<dyn Platform>,
    cache: CalibrationCache,
    gpus: Gpus,
    results: mpsc::Sender<Measurement>,
    at_work: Option<(Device, AbortOnDropHandle<()>)>,
    /// Devices whose measurement failed; they are not tried again by this process.
    given_up: BTreeSet<Device>,
}

impl Calibrator {
    pub(crate) fn new(
        platform: Arc<dyn Platform>,
        cache: CalibrationCache,
        gpus: Gpus,
        results: mpsc::Sender<Measurement>,
    ) -> Self {
        Self { platform, cache, gpus, results, at_work: None, given_up: BTreeSet::new() }
    }

    /// Begins with the next device that has no measurement, if none is being measured.
    pub(crate) fn work(&mut self, inventory: &Inventory) {
        let unknown =
            |device: &&NodeDevice| device.calibration.is_none() && !self.given_up.contains(&device.device);
        if self.at_work.is_some() {
            return;
        }
        if let Some(device) = inventory.devices.iter().find(unknown).map(|found| found.device) {
            let (platform, results) = (Arc::clone(&self.platform), self.results.clone());
            let (gpus, threads) = (self.gpus.clone(), self.cache.cpu_threads);
            gpus.withdraw(device);
            let work = AbortOnDropHandle::new(tokio::spawn(async move {
                gpus.vacated(device).await;
                let measured = platform.calibrate(device, threads).await;
                // Nobody listens any more only when the agent ends.
                let _nobody = results.send((device, measured)).await;
            }));
            self.at_work = Some((device, work));
        }
    }

    /// The device that is being measured.
    pub(crate) fn device(&self) -> Option<Device> {
        self.at_work.as_ref().map(|(device, _)| *device)
    }

    /// Breaks a measurement off: the device is needed. It is begun anew another time.
    pub(crate) fn stop(&mut self) {
        self.at_work = None;
    }

    /// Takes a result; true if the inventory has changed by it.
    pub(crate) fn measured(&mut self, (device, result): Measurement, inventory: &mut Inventory) -> bool {
        self.at_work = None;
        match result {
            Ok(calibration) => {
                tracing::info!(%device, steps_per_sec = calibration.steps_per_sec, "device measured");
                if let Err(error) = self.cache.keep(inventory, calibration) {
                    tracing::warn!(%error, "cannot save a measurement; it is repeated next time");
                }
                self.cache.fill(inventory);
                true
            }
            Err(error) => {
                tracing::warn!(%device, %error, "cannot measure the device");
                self.given_up.insert(device);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_holds_until_something_changes() {
        let folder = tempfile::tempdir().unwrap();
        let trainer = folder.path().join("trainer");
        fs::write(&trainer, "one").unwrap();
        let device = NodeDevice {
            device: Device::CPU,
            name: "Xeon".into(),
            memory_bytes: 1,
            bf16: false,
            driver: None,
            power_watts_max: None,
            calibration: None,
        };
        let ready = TrainerState::Ready { version: "1".into(), libtorch: "2.11.0".into() };
        let mut inventory =
            Inventory { trainer: ready, devices: vec![device], cores: 2, ..Default::default() };
        let calibration =
            Calibration { device: Device::CPU, steps_per_sec: 3.0, flops_per_sec: 1e9, version: 1 };
        let mut cache = CalibrationCache::open(folder.path(), &trainer, 0);
        cache.keep(&inventory, calibration.clone()).unwrap();

        let cache = CalibrationCache::open(folder.path(), &trainer, 0);
        cache.fill(&mut inventory);
        assert_eq!(inventory.devices[0].calibration, Some(calibration));
        let mut other = Inventory { cores: 4, ..inventory.clone() };
        cache.fill(&mut other);
        assert_eq!(other.devices[0].calibration, None, "other cores");
        fs::write(&trainer, "another build").unwrap();
        cache.fill(&mut inventory);
        assert_eq!(inventory.devices[0].calibration, None, "another trainer");

        fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(CalibrationCache::open(folder.path(), &trainer, 0).kept.is_empty());
    }
}
