//! Why there is no CUDA device: what was found on the machine, and what its owner can do about it.

use std::{fs, io};

use crate::{
    cuda_library::{CUDA_LIBRARY, CudaLibrary},
    ffi::CudaDriver,
};

/// The CUDA that libtorch is built with, as drivers count, and the first driver that runs it.
const CUDA_NEEDED: i32 = 13_000;
const DRIVER_NEEDED: &str = "580";
const NO_DEVICE: i32 = 100;

/// What there is on a machine.
#[derive(Clone, Debug)]
pub(crate) struct Findings {
    pub(crate) is_linux: bool,
    /// What the driver's library says, if there is one.
    pub(crate) driver: Option<CudaDriver>,
    /// Whether the driver's part in the kernel is loaded.
    pub(crate) has_kernel_module: bool,
    /// Whether the kernel is that of Windows' Linux, which reaches the GPU by another way.
    pub(crate) is_wsl: bool,
    /// A device file that this user may not open.
    pub(crate) closed_to_us: Option<String>,
    /// What `CUDA_VISIBLE_DEVICES` says.
    pub(crate) visible_devices: Option<String>,
    pub(crate) library: CudaLibrary,
}

/// The reason that has to go first, and what to do.
pub(crate) fn explain(found: &Findings) -> String {
    if !found.is_linux {
        return "there is no CUDA for this operating system".into();
    }
    let Some(driver) = found.driver else {
        return if found.has_kernel_module {
            "the NVIDIA driver is loaded, but its library libcuda.so.1 is missing: install the driver's \
             libraries, or pass them into this container"
                .into()
        } else {
            "no NVIDIA driver is loaded on this machine".into()
        };
    };
    if let Some(file) = &found.closed_to_us {
        return format!(
            "this user may not open {file}: add the user to the file's group and log in again, or pass the \
             device into this container"
        );
    }
    if let Some(hidden) = found.visible_devices.as_ref().filter(|value| hides_all(value)) {
        return format!("CUDA_VISIBLE_DEVICES={hidden:?} hides every GPU: unset it");
    }
    if driver.cuda < CUDA_NEEDED {
        return format!(
            "the NVIDIA driver supports CUDA up to {}, but libtorch from `cargo xtask setup` needs {}: \
             install driver {DRIVER_NEEDED} or newer",
            version(driver.cuda),
            version(CUDA_NEEDED)
        );
    }
    if driver.init == NO_DEVICE && !found.has_kernel_module && !found.is_wsl {
        return "the NVIDIA driver is installed, but its kernel module is not loaded: `modprobe nvidia` shows \
             why".into();
    }
    if driver.init != 0 {
        return format!("the NVIDIA driver does not start: {}", init_problem(driver.init));
    }
    match &found.library {
        CudaLibrary::Absent => format!(
            "an NVIDIA driver is present, but libtorch has no {CUDA_LIBRARY}; fetch it with `cargo xtask \
             setup`, or set LD_LIBRARY_PATH to the lib folder of a libtorch with CUDA"
        ),
        CudaLibrary::Broken(error) => format!("{CUDA_LIBRARY} cannot be loaded: {error}"),
        CudaLibrary::Loaded => {
            "driver and libtorch are present, but libtorch finds no usable GPU: it needs compute \
             capability 7.5 or newer"
                .into()
        }
    }
}

/// The first of the driver's device files that exists and that this user may not open.
pub(crate) fn closed_to_us() -> Option<String> {
    const FILES: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0"];
    let is_closed = |file: &&&str| {
        let opened = fs::OpenOptions::new().read(true).write(true).open(file);
        opened.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    FILES.iter().find(is_closed).map(|file| (*file).to_owned())
}

/// Only what stands before the first name that is none counts.
fn hides_all(visible_devices: &str) -> bool {
    let first = visible_devices.split(',').next().unwrap_or_default().trim();
    first.is_empty() || first.starts_with('-')
}

fn version(cuda: i32) -> String {
    format!("{}.{}", cuda / 1000, cuda % 1000 / 10)
}

/// Of cuda.h's CUresult, those that an owner meets.
fn init_problem(code: i32) -> String {
    match code {
        NO_DEVICE => "it finds no GPU (is one installed, and passed into this container?)".into(),
        802 => "the GPUs are not ready yet (is the fabric manager running?)".into(),
        803 => "its library and its kernel module are of different versions: restart the machine, as after \
             every driver update"
            .into(),
        804 => "this GPU does not support forward compatibility: install the driver itself".into(),
        999 => "unknown error, common after sleep: reload the module with `rmmod nvidia_uvm && modprobe \
             nvidia_uvm`, or restart the machine"
            .into(),
        code => format!("error {code} of cuInit; `nvidia-smi` may show more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which nothing is wrong but that libtorch finds no device.
    fn sound() -> Findings {
        Findings {
            is_linux: true,
            driver: Some(CudaDriver { init: 0, cuda: 13_000 }),
            has_kernel_module: true,
            is_wsl: false,
            closed_to_us: None,
            visible_devices: None,
            library: CudaLibrary::Loaded,
        }
    }

    #[test]
    fn each_reason_is_told_with_what_to_do() {
        let told = |change: fn(&mut Findings)| {
            let mut found = sound();
            change(&mut found);
            explain(&found)
        };
        let says = |change, words: &[&str]| {
            let told = told(change);
            assert!(words.iter().all(|word| told.contains(word)), "{told}");
        };
        says(|found| found.is_linux = false, &["no CUDA"]);
        says(|found| (found.driver, found.has_kernel_module) = (None, false), &["no NVIDIA driver"]);
        says(|found| found.driver = None, &["libcuda.so.1", "install"]);
        says(|found| found.closed_to_us = Some("/dev/nvidia0".into()), &["/dev/nvidia0", "group"]);
        says(|found| found.visible_devices = Some("-1".into()), &["CUDA_VISIBLE_DEVICES", "unset"]);
        says(|found| found.visible_devices = Some(String::new()), &["CUDA_VISIBLE_DEVICES"]);
        says(|found| found.visible_devices = Some("0,1".into()), &["7.5"]);
        let old = |found: &mut Findings| found.driver = Some(CudaDriver { init: 0, cuda: 12_040 });
        says(old, &["12.4", "13.0", "580"]);
        let updated = |found: &mut Findings| found.driver = Some(CudaDriver { init: 803, cuda: 13_000 });
        says(updated, &["different versions", "restart"]);
        let unloaded = |found: &mut Findings| {
            found.driver = Some(CudaDriver { init: NO_DEVICE, cuda: 13_000 });
            found.has_kernel_module = false;
        };
        says(unloaded, &["modprobe"]);
        let empty = |found: &mut Findings| found.driver = Some(CudaDriver { init: NO_DEVICE, cuda: 13_000 });
        says(empty, &["finds no GPU"]);
        let unknown = |found: &mut Findings| found.driver = Some(CudaDriver { init: 3, cuda: 13_010 });
        says(unknown, &["error 3"]);
        says(|found| found.library = CudaLibrary::Absent, &["cargo xtask setup"]);
        says(|found| found.library = CudaLibrary::Broken("libcudnn.so.9: no".into()), &["libcudnn.so.9"]);
        says(|_| (), &["7.5"]);
    }
}
