//! The devices that this process can train on, and why not on others.

use std::path::Path;

use hatchery_common::{
    device::{Device, DeviceKind},
    recipe::Precision,
    trainer::{DoctorReport, FailureCause, TrainerDevice, UnavailableDevice},
};
use hatchery_trainer_shim as shim;

pub use crate::cuda_library::open_cuda;
use crate::{cuda_absence, cuda_library, failure::Failure, ffi};

/// The first compute capability whose matrix units take bf16.
const BF16_CAPABILITY_MIN: i32 = 8;

/// The devices in the order of preference, and the kinds that are missing, with reasons.
pub fn doctor() -> DoctorReport {
    let mut devices = cuda_devices();
    let mut unavailable = Vec::new();
    if devices.is_empty() {
        unavailable.push(UnavailableDevice { kind: DeviceKind::Cuda, why: why_no_cuda() });
    }
    if tch::utils::has_mps() {
        let name = "Apple GPU".to_owned();
        devices.push(TrainerDevice { device: Device::MPS, name, memory_bytes: 0, bf16: false });
    } else {
        let why = if cfg!(target_os = "macos") {
            "libtorch finds no Metal device; it needs Apple silicon and macOS 14 or newer"
        } else {
            "available only on macOS with Apple silicon"
        };
        unavailable.push(UnavailableDevice { kind: DeviceKind::Mps, why: why.into() });
    }
    devices.push(TrainerDevice {
        device: Device::CPU,
        name: cpu_name(),
        memory_bytes: 0,
        bf16: cpu_multiplies_bf16(),
    });
    DoctorReport {
        trainer: env!("CARGO_PKG_VERSION").into(),
        libtorch: ffi::libtorch_version(),
        libtorch_folder: ffi::libtorch_folder(),
        devices,
        unavailable,
    }
}

/// Finds `wanted`, or the most preferred device. The error says why it cannot be used.
pub fn find(wanted: Option<Device>) -> Result<TrainerDevice, Failure> {
    let report = doctor();
    let mut devices = report.devices.into_iter();
    let unavailable = |message| Err(Failure::new(FailureCause::Unavailable, message));
    let Some(wanted) = wanted else {
        return devices.next().map_or_else(|| unavailable("libtorch finds no device".into()), Ok);
    };
    // The parts of a processor are the agent's matter: to libtorch it is one, with so many threads.
    let is_it = |found: &TrainerDevice| {
        found.device == wanted || (found.device.kind, wanted.kind) == (DeviceKind::Cpu, DeviceKind::Cpu)
    };
    if let Some(found) = devices.find(is_it) {
        return Ok(TrainerDevice { device: wanted, ..found });
    }
    let why = report.unavailable.into_iter().find(|missing| missing.kind == wanted.kind);
    let why = why.map_or_else(|| format!("this machine has no {wanted}"), |missing| missing.why);
    unavailable(format!(
        "the device {wanted} cannot be used here: {why}; run `hatchery-trainer doctor` to list usable devices"
    ))
}

/// libtorch's name for a device.
pub fn torch_device(device: Device) -> tch::Device {
    match device.kind {
        DeviceKind::Cuda => tch::Device::Cuda(device.index as usize),
        DeviceKind::Mps => tch::Device::Mps,
        DeviceKind::Cpu => tch::Device::Cpu,
    }
}

/// Memory that this process holds where it computes: of a GPU what libtorch has of it, else what is resident.
pub fn memory_bytes(device: tch::Device) -> u64 {
    match device {
        tch::Device::Cuda(index) => {
            shim::cuda_memory(index as u32).map(|memory| memory.held).unwrap_or_default()
        }
        _ => ffi::resident_bytes(),
    }
}

/// Memory of a GPU that this process has or could have, in bytes; 0 where it is not told, as on a CPU.
pub fn available_bytes(device: &TrainerDevice) -> u64 {
    match device.device.kind {
        DeviceKind::Cuda => {
            shim::cuda_memory(device.device.index).map(|memory| memory.held + memory.free).unwrap_or_default()
        }
        DeviceKind::Mps | DeviceKind::Cpu => 0,
    }
}

/// The arithmetic for `device`.
pub fn precision(wanted: Precision, device: &TrainerDevice) -> Precision {
    wanted.resolve(device.device.kind, device.bf16)
}

/// Sets the threads of a CPU device; 0: as many as there are cores.
pub fn use_threads(threads: u32) {
    let all = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as i32);
    tch::set_num_threads(if threads == 0 { all() } else { threads as i32 });
}

fn cuda_devices() -> Vec<TrainerDevice> {
    if !tch::Cuda::is_available() {
        return Vec::new();
    }
    (0..tch::Cuda::device_count() as u32)
        .map(|index| {
            let found = ffi::cuda_device(index).unwrap_or_default();
            let name = if found.name.is_empty() { format!("NVIDIA GPU {index}") } else { found.name };
            TrainerDevice {
                device: Device::cuda(index),
                name,
                memory_bytes: found.memory_bytes,
                bf16: found.capability_major >= BF16_CAPABILITY_MIN,
            }
        })
        .collect()
}

fn why_no_cuda() -> String {
    cuda_absence::explain(&cuda_absence::Findings {
        is_linux: cfg!(target_os = "linux"),
        driver: ffi::cuda_driver(),
        has_kernel_module: Path::new("/proc/driver/nvidia/version").exists(),
        is_wsl: Path::new("/dev/dxg").exists(),
        closed_to_us: cuda_absence::closed_to_us(),
        visible_devices: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
        library: cuda_library::opened(),
    })
}

fn cpu_name() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn cpu_multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("bf16");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_processor_is_the_processor() {
        let (whole, part) = (find(Some(Device::CPU)).unwrap(), find(Some(Device::cpu(3))).unwrap());
        assert_eq!((part.device, part.name), (Device::cpu(3), whole.name));
        assert_eq!(torch_device(part.device), tch::Device::Cpu);
        assert!(find(Some(Device::cuda(63))).is_err());
    }
}
