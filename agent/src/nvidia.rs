//! NVIDIA GPUs by the driver's own library, opened at run time: a machine without it is a machine without them.

use std::sync::OnceLock;

use nvml_wrapper::{Nvml, error::NvmlError};

/// What makes CUDA count the GPUs as the driver does, by their place on the PCI bus: set for every trainer.
pub(crate) const CUDA_ORDER: (&str, &str) = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");

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

/// One GPU.
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

/// What the GPU draws now, in watts, where it says so.
pub(crate) fn power_watts(index: u32) -> Option<f64> {
    let gpu = library().as_ref().ok()?.device_by_index(index).ok()?;
    gpu.power_usage().ok().map(watts)
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
    format!("the NVIDIA driver does not answer: {error}")
}
