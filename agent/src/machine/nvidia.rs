//! NVIDIA GPUs by the driver's own library, opened at run time: a machine without it is a machine without them.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hatchery_common::trainer::{GpuReading, Slowdown};
use nvml_wrapper::{
    Nvml, bitmasks::device::ThrottleReasons, enum_wrappers::device::TemperatureSensor, error::NvmlError,
};

/// How long an attempt's loop waits for figures of its GPU.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// What the driver says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nvidia {
    /// The driver's version, if there is a driver.
    pub(crate) driver: Option<String>,
    /// Its GPUs that answer.
    pub(crate) gpus: Vec<Gpu>,
    /// Why nothing, or not all, could be read, if a driver seems to be there.
    pub(crate) problems: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gpu {
    /// In the driver's order, which is that of the PCI bus.
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) memory_bytes: u64,
    pub(crate) power_watts_max: Option<f64>,
}

/// Asks the driver. Blocks for as long as it takes to load, up to seconds where it was not in use.
pub(crate) fn look() -> Nvidia {
    let nvml = match library() {
        Ok(nvml) => nvml,
        // No library and no driver: the ordinary machine without such a GPU.
        Err(NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound) => {
            return Nvidia::default();
        }
        Err(error) => return Nvidia { problems: vec![in_words(error)], ..Nvidia::default() },
    };
    let mut seen = Nvidia::default();
    match nvml.sys_driver_version() {
        Ok(driver) => seen.driver = Some(driver),
        Err(error) => seen.problems.push(in_words(&error)),
    }
    let count = nvml.device_count().unwrap_or_else(|error| {
        seen.problems.push(in_words(&error));
        0
    });
    for index in 0..count {
        match gpu(nvml, index) {
            Ok(gpu) => seen.gpus.push(gpu),
            // One that has fallen off the bus hides none of the others.
            Err(error) => seen.problems.push(format!("cuda:{index}: {}", in_words(&error))),
        }
    }
    seen
}

/// What a GPU says of this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Now {
    pub(crate) power_watts: Option<f64>,
    /// The rest, if it answers at all.
    pub(crate) reading: Option<GpuReading>,
}

/// Asks the GPU that CUDA counts as `index`, on a thread that may wait for the driver. A driver that does not answer in
/// [`ANSWER_WITHIN`] gives nothing, and is not asked again before it has answered: these are figures for whoever looks on.
pub(crate) async fn now(index: u32) -> Now {
    static IS_ASKED: AtomicBool = AtomicBool::new(false);
    if IS_ASKED.swap(true, Ordering::AcqRel) {
        return Now::default();
    }
    let ask = tokio::task::spawn_blocking(move || {
        let now = library().as_ref().ok().and_then(|nvml| of_cuda(nvml, index).ok().map(|gpu| now_of(&gpu)));
        IS_ASKED.store(false, Ordering::Release);
        now.unwrap_or_default()
    });
    tokio::time::timeout(ANSWER_WITHIN, ask).await.map_or_else(|_| Now::default(), Result::unwrap_or_default)
}

/// CUDA counts only those that `CUDA_VISIBLE_DEVICES` names, by the driver's number or their own name.
fn of_cuda(nvml: &Nvml, index: u32) -> Result<nvml_wrapper::Device<'_>, NvmlError> {
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let name = visible.as_ref().and_then(|names| names.split(',').nth(index as usize)).map(str::trim);
    match name.map(str::parse) {
        None => nvml.device_by_index(index),
        Some(Ok(number)) => nvml.device_by_index(number),
        Some(Err(_)) => nvml.device_by_uuid(name.unwrap_or_default()),
    }
}

/// Each figure that it has; a laptop's GPU has not all of them.
fn now_of(gpu: &nvml_wrapper::Device<'_>) -> Now {
    let reading = GpuReading {
        busy_percent: gpu.utilization_rates().ok().map(|rates| rates.gpu.min(100)),
        memory_bytes: gpu.memory_info().ok().map(|memory| memory.used),
        temperature_celsius: gpu.temperature(TemperatureSensor::Gpu).ok(),
        slowed_by: gpu.current_throttle_reasons().ok().and_then(slowdown),
    };
    Now {
        power_watts: gpu.power_usage().ok().map(watts),
        reading: (reading != GpuReading::default()).then_some(reading),
    }
}

/// The gravest of the driver's reasons; it has several for one cause. Clocks that somebody has set, and none to run faster
/// because there is nothing to do, are no slowdown.
fn slowdown(reasons: ThrottleReasons) -> Option<Slowdown> {
    let has = |any| reasons.intersects(any);
    if has(ThrottleReasons::HW_THERMAL_SLOWDOWN | ThrottleReasons::SW_THERMAL_SLOWDOWN) {
        Some(Slowdown::Heat)
    } else if has(ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN) {
        Some(Slowdown::PowerSupply)
    } else if has(ThrottleReasons::HW_SLOWDOWN) {
        Some(Slowdown::Protection)
    } else if has(ThrottleReasons::SW_POWER_CAP) {
        Some(Slowdown::PowerLimit)
    } else {
        None
    }
}

fn gpu(nvml: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let gpu = nvml.device_by_index(index)?;
    Ok(Gpu {
        index,
        name: gpu.name()?,
        memory_bytes: gpu.memory_info()?.total,
        power_watts_max: gpu.enforced_power_limit().ok().map(watts),
    })
}

fn watts(milliwatts: u32) -> f64 {
    f64::from(milliwatts) / 1e3
}

/// The driver's library, opened once.
fn library() -> &'static Result<Nvml, NvmlError> {
    static LIBRARY: OnceLock<Result<Nvml, NvmlError>> = OnceLock::new();
    LIBRARY.get_or_init(Nvml::init)
}

fn in_words(error: &NvmlError) -> String {
    format!("the NVIDIA driver does not respond: {error}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use std::{path::PathBuf, process::Command};

    use super::*;

    /// A driver's library that says what it is told to: `tests/data/driver.c`.
    fn driver(folder: &tempfile::TempDir, throttle_reasons: u64) -> PathBuf {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/driver.c");
        let library = folder.path().join(format!("driver-{throttle_reasons}.so"));
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", &format!("-DTHROTTLE_REASONS={throttle_reasons}ull"), "-o"])
            .args([library.as_os_str(), source.as_ref()])
            .status();
        assert!(built.unwrap().success());
        library
    }

    fn ask(library: &std::path::Path) -> Now {
        let nvml = Nvml::builder().lib_path(library.as_os_str()).init().unwrap();
        now_of(&nvml.device_by_index(0).unwrap())
    }

    #[test]
    fn a_gpu_says_how_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let quiet = ask(&driver(&folder, 0));
        assert_eq!(quiet.power_watts, Some(179.5));
        let reading = GpuReading {
            busy_percent: Some(97),
            memory_bytes: Some(1_249 << 20),
            temperature_celsius: Some(81),
            slowed_by: None,
        };
        assert_eq!(quiet.reading, Some(reading));
        // The hardware's heat comes with the general reason.
        let hot = ask(&driver(&folder, 0x48));
        assert_eq!(hot.reading.unwrap().slowed_by, Some(Slowdown::Heat));
        let at_its_limit = ask(&driver(&folder, 0x4));
        assert_eq!(at_its_limit.reading.unwrap().slowed_by, Some(Slowdown::PowerLimit));
        let idle = ask(&driver(&folder, 0x1));
        assert_eq!(idle.reading.unwrap().slowed_by, None);
    }

    #[test]
    fn the_gravest_reason_is_told() {
        let reasons = |bits| slowdown(ThrottleReasons::from_bits_truncate(bits));
        assert_eq!(reasons(0x80 | 0x8), Some(Slowdown::PowerSupply));
        assert_eq!(reasons(0x8), Some(Slowdown::Protection));
        assert_eq!(reasons(0x20 | 0x4), Some(Slowdown::Heat));
        assert_eq!(reasons(0x2 | 0x100), None);
    }
}
