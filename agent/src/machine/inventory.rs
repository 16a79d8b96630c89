//! What this machine is and has: from the system, the NVIDIA driver, and the trainer.

use std::path::Path;

use hatchery_common::{
    device::{Device, DeviceKind},
    node::{Inventory, NodeDevice, TrainerState},
    trainer::{DoctorReport, TrainerDevice},
};
use hatchery_net::blocking;
use rustix::fs::statvfs;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use super::nvidia::{self, Nvidia};
use crate::trainer::tool::{self, TrainerToolError};

/// Looks at everything. `state` is a folder on the file system whose size counts.
pub(crate) async fn look(state: &Path, trainer: &Path) -> Inventory {
    let folder = state.to_owned();
    let machine = blocking(move || (machine(&folder), nvidia::look()));
    let ((inventory, nvidia), doctor) = tokio::join!(machine, tool::doctor(trainer));
    with_devices(inventory, &nvidia, doctor)
}

/// What the system says.
fn machine(state: &Path) -> Inventory {
    let kinds = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(kinds);
    let cpu_model =
        system.as_ref().ok().and_then(|system| Some(system.cpus().first()?.brand().trim().to_owned()));
    Inventory {
        hostname: System::host_name().unwrap_or_else(|_| "unknown".to_owned()),
        os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
        architecture: std::env::consts::ARCH.to_owned(),
        cpu_model: cpu_model.filter(|model| !model.is_empty()).unwrap_or_else(|| "unknown".to_owned()),
        cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
        memory_bytes: system.map_or(0, |system| memory_bytes(&system)),
        disk_bytes: statvfs(state).map_or(0, |disk| disk.f_blocks * disk.f_frsize),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Inventory::default()
    }
}

/// The memory that this process may use: a container may have less than its machine.
fn memory_bytes(system: &System) -> u64 {
    let machine = system.total_memory();
    match system.cgroup_limits() {
        Some(limits) if limits.total_memory > 0 => machine.min(limits.total_memory),
        _ => machine,
    }
}

/// Adds what trainer and driver say.
fn with_devices(
    mut inventory: Inventory,
    nvidia: &Nvidia,
    doctor: Result<DoctorReport, TrainerToolError>,
) -> Inventory {
    inventory.notes.extend(nvidia.problems.iter().cloned());
    match doctor {
        Ok(report) => {
            let devices = report.devices.iter().map(|device| node_device(device, nvidia, &inventory));
            inventory.devices = devices.collect();
            inventory.notes.extend(of_two_versions(&inventory.agent_version, &report.trainer));
            inventory.trainer = TrainerState::Ready { version: report.trainer, libtorch: report.libtorch };
            inventory
                .notes
                .extend(report.unavailable.iter().map(|kind| format!("{}: {}", kind.kind, kind.why)));
        }
        Err(error) => {
            let gpus = nvidia.gpus.iter();
            inventory
                .notes
                .extend(gpus.map(|gpu| format!("{}: {} needs a trainer", Device::cuda(gpu.index), gpu.name)));
            inventory.trainer = TrainerState::Missing { why: error.to_string() };
        }
    }
    inventory
}

/// What is wrong with an agent and a trainer of these versions, if anything: they need not understand one another.
fn of_two_versions(agent: &str, trainer: &str) -> Option<String> {
    (agent != trainer).then(|| {
        format!(
            "hatchery has version {agent}, but hatchery-trainer {trainer}: install both from the same release"
        )
    })
}

/// What the trainer can use, with what only the driver or the system knows.
fn node_device(found: &TrainerDevice, nvidia: &Nvidia, machine: &Inventory) -> NodeDevice {
    let mut device = NodeDevice {
        device: found.device,
        name: found.name.clone(),
        memory_bytes: found.memory_bytes,
        bf16: found.bf16,
        driver: None,
        power_watts_max: None,
        calibration: None,
    };
    match found.device.kind {
        DeviceKind::Cuda => {
            device.driver.clone_from(&nvidia.driver);
            // The trainer is told to count as the driver does; where the names differ all the same, it is believed.
            let gpu = nvidia.gpus.iter().find(|gpu| gpu.index == found.device.index);
            if let Some(gpu) = gpu.filter(|gpu| device.name.is_empty() || gpu.name == device.name) {
                device.name.clone_from(&gpu.name);
                device.memory_bytes = gpu.memory_bytes;
                device.power_watts_max = gpu.power_watts_max;
            }
        }
        DeviceKind::Cpu => {
            device.memory_bytes = machine.memory_bytes;
            if device.name.is_empty() {
                device.name.clone_from(&machine.cpu_model);
            }
        }
        DeviceKind::Mps => {}
    }
    device
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::nvidia::Gpu;
    use hatchery_common::trainer::UnavailableDevice;

    fn trainer_device(device: Device, name: &str) -> TrainerDevice {
        TrainerDevice { device, name: name.to_owned(), memory_bytes: 7, bf16: true }
    }

    fn report(devices: Vec<TrainerDevice>) -> DoctorReport {
        let unavailable = vec![UnavailableDevice { kind: DeviceKind::Mps, why: "this is no Mac".into() }];
        DoctorReport {
            trainer: "1".into(),
            libtorch: "2.11.0".into(),
            libtorch_folder: None,
            devices,
            unavailable,
        }
    }

    #[test]
    fn this_machine_has_plausible_figures() {
        let inventory = machine(Path::new("/"));
        assert!(inventory.cores >= 1);
        assert!(inventory.memory_bytes > 1 << 26, "{} bytes of memory", inventory.memory_bytes);
        assert!(inventory.disk_bytes > 1 << 26);
        for text in [&inventory.hostname, &inventory.os, &inventory.cpu_model, &inventory.architecture] {
            assert!(!text.is_empty());
        }
    }

    #[test]
    fn trainer_and_driver_are_merged() {
        let nvidia = Nvidia {
            driver: Some("580.1".into()),
            gpus: vec![Gpu {
                index: 0,
                name: "RTX".into(),
                memory_bytes: 12 << 30,
                power_watts_max: Some(250.0),
            }],
            problems: vec![],
        };
        let devices = vec![trainer_device(Device::cuda(0), ""), trainer_device(Device::CPU, "")];
        let machine = Inventory {
            memory_bytes: 64 << 30,
            cpu_model: "Xeon".into(),
            agent_version: "1".into(),
            ..Inventory::default()
        };
        let merged = with_devices(machine.clone(), &nvidia, Ok(report(devices)));
        let [gpu, cpu] = &merged.devices[..] else { panic!("{:?}", merged.devices) };
        assert_eq!(
            (gpu.name.as_str(), gpu.memory_bytes, gpu.driver.as_deref()),
            ("RTX", 12 << 30, Some("580.1"))
        );
        assert_eq!((gpu.power_watts_max, cpu.power_watts_max), (Some(250.0), None));
        assert_eq!((cpu.name.as_str(), cpu.memory_bytes, cpu.driver.as_deref()), ("Xeon", 64 << 30, None));
        assert_eq!(merged.notes, ["mps: this is no Mac"]);

        let newer = Inventory { agent_version: "2".into(), ..machine.clone() };
        let merged = with_devices(newer, &nvidia, Ok(report(vec![])));
        let told = "hatchery has version 2, but hatchery-trainer 1: install both from the same release";
        assert_eq!(merged.notes, [told, "mps: this is no Mac"]);

        let missing = with_devices(machine, &nvidia, Err(TrainerToolError::Missing("/x".into())));
        assert!(
            matches!(&missing.trainer, TrainerState::Missing { why } if why.contains("HATCHERY_TRAINER"))
        );
        assert_eq!(missing.notes, ["cuda:0: RTX needs a trainer"]);
    }
}
