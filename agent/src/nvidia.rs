//! NVIDIA GPUs by the driver's own library, opened at run time: a machine without it is a machine without them.

use nvml_wrapper::{Nvml, error::NvmlError};

/// What the driver says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nvidia {
    /// The driver's version, if there is a driver.
    pub(crate) driver: Option<String>,
    /// Its GPUs, in the driver's order, which is that of the PCI bus.
    pub(crate) gpus: Vec<Gpu>,
    /// Why nothing, or not all, could be read, if a driver seems to be there.
    pub(crate) problem: Option<String>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gpu {
    pub(crate) name: String,
    pub(crate) memory_bytes: u64,
}

/// Asks the driver. Blocks for as long as it takes to load, up to seconds where it was not in use.
pub(crate) fn look() -> Nvidia {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        // No library and no driver: the ordinary machine without such a GPU.
        Err(NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound) => {
            return Nvidia::default();
        }
        Err(error) => return Nvidia { problem: Some(in_words(&error)), ..Nvidia::default() },
    };
    let read = || -> Result<(String, Vec<Gpu>), NvmlError> {
        let gpus = (0..nvml.device_count()?).map(|index| {
            let gpu = nvml.device_by_index(index)?;
            Ok(Gpu { name: gpu.name()?, memory_bytes: gpu.memory_info()?.total })
        });
        Ok((nvml.sys_driver_version()?, gpus.collect::<Result<_, NvmlError>>()?))
    };
    match read() {
        Ok((driver, gpus)) => Nvidia { driver: Some(driver), gpus, problem: None },
        Err(error) => Nvidia { problem: Some(in_words(&error)), ..Nvidia::default() },
    }
}

fn in_words(error: &NvmlError) -> String {
    format!("the NVIDIA driver does not answer: {error}")
}
