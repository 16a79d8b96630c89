//! Which libtorch this machine takes: its platform, and whether the CUDA libraries are of use on it.

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// A platform for which PyPI has torch wheels that `tch` can link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Platform {
    /// Linux on x86-64, glibc.
    LinuxX86_64,
    /// Linux on 64-bit ARM, glibc.
    LinuxAarch64,
    /// macOS on Apple silicon.
    MacosArm64,
}

impl Platform {
    /// The platform that this program was built for.
    pub(crate) fn current() -> Result<Self> {
        match (std::env::consts::OS, std::env::consts::ARCH) {
            ("linux", _) if cfg!(target_env = "musl") => {
                bail!(
                    "this Linux uses musl; libtorch is built for glibc only: use a glibc distribution or container"
                )
            }
            ("linux", "x86_64") => Ok(Self::LinuxX86_64),
            ("linux", "aarch64") => Ok(Self::LinuxAarch64),
            ("macos", "aarch64") => Ok(Self::MacosArm64),
            (os, arch) => bail!(
                "there is no libtorch wheel for {os} on {arch}; \
                 build libtorch yourself and set LIBTORCH to its folder"
            ),
        }
    }

    /// Whether a wheel with this platform tag runs here. A tag is one of the dot-separated parts of the last
    /// field of a wheel's name.
    pub(crate) fn accepts(self, tag: &str) -> bool {
        tag == "any"
            || match self {
                Self::LinuxX86_64 => tag.starts_with("manylinux") && tag.ends_with("_x86_64"),
                Self::LinuxAarch64 => tag.starts_with("manylinux") && tag.ends_with("_aarch64"),
                Self::MacosArm64 => {
                    tag.starts_with("macosx") && (tag.ends_with("_arm64") || tag.ends_with("_universal2"))
                }
            }
    }

    /// Whether wheels for this platform come with CUDA.
    pub(crate) fn is_linux(self) -> bool {
        self != Self::MacosArm64
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::LinuxX86_64 => "Linux x86-64",
            Self::LinuxAarch64 => "Linux arm64",
            Self::MacosArm64 => "macOS arm64",
        })
    }
}

/// How much of libtorch is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Flavour {
    /// The CPU libraries (on macOS with MPS inside).
    Cpu,
    /// The CPU libraries and all that `libtorch_cuda.so` needs.
    Cuda,
}

impl fmt::Display for Flavour {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Cpu => "CPU",
            Self::Cuda => "CUDA",
        })
    }
}

/// Traces that an NVIDIA driver leaves on a Linux machine, in a container too.
const DRIVER_TRACES: [&str; 8] = [
    "/proc/driver/nvidia/version",
    "/dev/nvidiactl",
    "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "/usr/lib/aarch64-linux-gnu/libcuda.so.1",
    "/usr/lib64/libcuda.so.1",
    "/usr/lib/libcuda.so.1",
    "/usr/lib/wsl/lib/libcuda.so.1",
    "/run/opengl-driver/lib/libcuda.so.1",
];

/// The flavour that is of use here: CUDA where an NVIDIA driver is installed.
pub(crate) fn detect_flavour(platform: Platform) -> Flavour {
    let has_driver = || DRIVER_TRACES.iter().any(|trace| Path::new(trace).exists());
    if platform.is_linux() && has_driver() { Flavour::Cuda } else { Flavour::Cpu }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_matched_by_system_and_processor() {
        assert!(Platform::LinuxX86_64.accepts("manylinux_2_28_x86_64"));
        assert!(Platform::LinuxX86_64.accepts("manylinux2014_x86_64"));
        assert!(Platform::LinuxX86_64.accepts("any"));
        assert!(!Platform::LinuxX86_64.accepts("musllinux_1_2_x86_64"));
        assert!(!Platform::LinuxX86_64.accepts("win_amd64"));
        assert!(!Platform::LinuxX86_64.accepts("manylinux_2_28_aarch64"));
        assert!(Platform::LinuxAarch64.accepts("manylinux_2_28_aarch64"));
        assert!(Platform::MacosArm64.accepts("macosx_11_0_arm64"));
        assert!(!Platform::MacosArm64.accepts("macosx_11_0_x86_64"));
    }
}
