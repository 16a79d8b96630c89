//! Devices: the things a trainer can run on.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::field::FieldError;

/// The kinds of device that libtorch gives us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Mps,
    /// The processor.
    Cpu,
}

impl DeviceKind {
    /// Every kind, fastest first as a rule.
    pub const ALL: [Self; 3] = [Self::Cuda, Self::Mps, Self::Cpu];

    /// `cuda`, `mps` or `cpu`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Mps => "mps",
            Self::Cpu => "cpu",
        }
    }
}

impl DeviceKind {
    const fn index_max(self) -> u32 {
        match self {
            Self::Cuda => Device::INDEX_MAX,
            Self::Mps => 0,
            Self::Cpu => Device::CPU_INDEX_MAX,
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DeviceKind {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| FieldError::new("device", format!("`{text}` is not one of cuda, mps, cpu")))
    }
}

/// One device of a node: `cuda:0`, `mps` or `cpu`. A processor of many cores counts as several: `cpu`, `cpu:1`, ...
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Which of its kind; always 0 for `mps`.
    pub index: u32,
}

impl Device {
    /// The processor, or the first part of it.
    pub const CPU: Self = Self { kind: DeviceKind::Cpu, index: 0 };
    /// The Apple GPU.
    pub const MPS: Self = Self { kind: DeviceKind::Mps, index: 0 };
    /// Most devices of one kind in a node, less one.
    pub const INDEX_MAX: u32 = 63;
    /// Most parts of a processor, less one.
    pub const CPU_INDEX_MAX: u32 = 15;
    /// Most devices in a node.
    pub const COUNT_MAX: usize = (Self::INDEX_MAX + 1 + Self::CPU_INDEX_MAX + 1 + 1) as usize;

    /// A part of the processor.
    pub const fn cpu(index: u32) -> Self {
        Self { kind: DeviceKind::Cpu, index }
    }

    /// The NVIDIA GPU number `index`.
    pub const fn cuda(index: u32) -> Self {
        Self { kind: DeviceKind::Cuda, index }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            DeviceKind::Cuda => f.pad(&format!("cuda:{}", self.index)),
            DeviceKind::Cpu if self.index > 0 => f.pad(&format!("cpu:{}", self.index)),
            kind => f.pad(kind.name()),
        }
    }
}

impl FromStr for Device {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let (kind, index) = match text.split_once(':') {
            Some((kind, index)) => (kind, index.parse().ok()),
            None => (text, Some(0)),
        };
        match (kind.parse::<DeviceKind>(), index) {
            (Ok(kind), Some(index)) if index <= kind.index_max() => Ok(Self { kind, index }),
            _ => Err(FieldError::new("device", format!("`{text}` is not one of cuda:N, mps, cpu, cpu:N"))),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = FieldError;

    fn try_from(text: String) -> Result<Self, FieldError> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for device in [Device::CPU, Device::cpu(3), Device::MPS, Device::cuda(0), Device::cuda(7)] {
            assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
        }
        for wrong in ["gpu", "mps:1", "cpu:16", "cuda:x", "cuda:64", ""] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::cuda(0));
        assert_eq!((Device::cpu(0), Device::cpu(0).to_string()), (Device::CPU, "cpu".to_owned()));
    }
}
