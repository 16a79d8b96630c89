//! A processor of many cores trains several jobs at once: it counts as several devices, each with its part of cores and memory.
//!
//! A trainer has at most one thread for each sequence of a batch (`trainer/src/fast/`), so that beyond a batch's worth of cores
//! one job gains nothing by more of them, while another could.

use hatchery_common::{
    device::{Device, DeviceKind},
    node::{Inventory, NodeDevice},
};

/// Cores that one trainer can use: the sequences of a batch, by default.
const CORES_PER_TRAINER: u32 = 8;
/// Memory that one trainer should have, in bytes.
const MEMORY_BYTES_PER_TRAINER: u64 = 4 << 30;
/// Most trainers that a processor may be divided between.
pub(crate) const CPU_TRAINERS_MAX: u32 = Device::CPU_INDEX_MAX + 1;

/// How many trainers the processor of `machine` runs at once: as many as are `wished` for, or with 0 as many as cores and
/// memory carry.
pub(crate) fn trainers(wished: u32, machine: &Inventory) -> u32 {
    let carried = || {
        let by_memory = u32::try_from(machine.memory_bytes / MEMORY_BYTES_PER_TRAINER).unwrap_or(u32::MAX);
        (machine.cores / CORES_PER_TRAINER).min(by_memory)
    };
    let count = if wished == 0 { carried() } else { wished };
    count.clamp(1, CPU_TRAINERS_MAX)
}

/// Threads of each of as many trainers as are `wished` for; `threads`, unless that is 0.
pub(crate) fn threads(threads: u32, wished: u32, machine: &Inventory) -> u32 {
    let trainers = trainers(wished, machine);
    if threads == 0 && trainers > 1 { (machine.cores / trainers).max(1) } else { threads }
}

/// Makes of the one processor of an inventory as many devices as trainers run on it.
pub(crate) fn divide(wished: u32, machine: &mut Inventory) {
    let trainers = trainers(wished, machine);
    let Some(at) = machine.devices.iter().position(|found| found.device.kind == DeviceKind::Cpu) else {
        return;
    };
    let whole = machine.devices.remove(at);
    let part = |index| NodeDevice {
        device: Device::cpu(index),
        memory_bytes: whole.memory_bytes / u64::from(trainers),
        ..whole.clone()
    };
    let parts: Vec<NodeDevice> = (0..trainers).map(part).collect();
    machine.devices.splice(at..at, parts);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cores: u32, memory_gib: u64) -> Inventory {
        let device = |device, memory_bytes| NodeDevice {
            device,
            name: String::new(),
            memory_bytes,
            bf16: false,
            driver: None,
            power_watts_max: None,
            calibration: None,
        };
        let memory_bytes = memory_gib << 30;
        let devices =
            vec![device(Device::cuda(0), 8 << 30), device(Device::CPU, memory_bytes), device(Device::MPS, 1)];
        Inventory { cores, memory_bytes, devices, ..Inventory::default() }
    }

    #[test]
    fn cores_and_memory_say_how_many_trainers_there_are() {
        for (cores, memory_gib, expected) in [
            (1, 1, 1),
            (2, 24, 1),
            (15, 64, 1),
            (16, 64, 2),
            (64, 256, 8),
            (64, 12, 3),
            (512, 2048, 16),
            (0, 0, 1),
        ] {
            assert_eq!(trainers(0, &machine(cores, memory_gib)), expected, "{cores} cores, {memory_gib} GiB");
        }
        assert_eq!(trainers(3, &machine(2, 1)), 3, "who wishes so has reasons");
        assert_eq!(threads(0, 1, &machine(12, 64)), 0, "as many as there are cores");
        assert_eq!(threads(0, 8, &machine(66, 256)), 8);
        assert_eq!(threads(0, 3, &machine(2, 1)), 1);
        assert_eq!(threads(5, 8, &machine(64, 256)), 5);
    }

    #[test]
    fn a_divided_processor_is_several_devices_in_its_place() {
        let mut one = machine(8, 64);
        divide(0, &mut one);
        assert_eq!(one, machine(8, 64));
        let mut many = machine(24, 96);
        divide(0, &mut many);
        let devices: Vec<(String, u64)> =
            many.devices.iter().map(|found| (found.device.to_string(), found.memory_bytes >> 30)).collect();
        let expected = [("cuda:0", 8), ("cpu", 32), ("cpu:1", 32), ("cpu:2", 32), ("mps", 0)];
        assert_eq!(devices, expected.map(|(name, gib)| (name.to_owned(), gib)));
        let mut without = Inventory { devices: vec![], ..machine(64, 256) };
        divide(0, &mut without);
        assert_eq!(without.devices, []);
    }
}
