//! The kinds of number in which weights and states are kept. All arithmetic is in f32.
#![allow(
    clippy::inline_always,
    reason = "part of the inner loops, which are compiled for several instruction sets"
)]

use std::fmt;

use half::bf16;
use serde::{Deserialize, Serialize};

use crate::simd::{LANES, Vector, bf16_to_f32, f32_to_bf16};

/// In which kind of number the layers' weights and the state are kept. Embedding and read-out are always f32: they are
/// small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Four bytes, 24 bits of precision.
    #[default]
    F32,
    /// Two bytes, 8 bits of precision: half the memory and half the traffic.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// A kind of number that weights and states can be kept in. `default()` is zero.
pub(crate) trait Number: Copy + Default + fmt::Debug {
    fn to_f32(self) -> f32;
    /// The nearest, of two equally near ones the even.
    fn from_f32(value: f32) -> Self;
    fn load<V: Vector>(numbers: &[Self; LANES]) -> V;
    /// Appends the number, little-endian.
    fn append_to(self, bytes: &mut Vec<u8>);
    /// The number in `bytes`, little-endian, of which there are as many as it has.
    fn from_bytes(bytes: &[u8]) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn load<V: Vector>(numbers: &[Self; LANES]) -> V {
        V::load(numbers)
    }

    fn append_to(self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_le_bytes());
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self::from_le_bytes(*bytes.first_chunk().expect("an f32 has four bytes"))
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16_to_f32(self)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f32_to_bf16(value)
    }

    #[inline(always)]
    fn load<V: Vector>(numbers: &[Self; LANES]) -> V {
        V::load_bf16(numbers)
    }

    fn append_to(self, bytes: &mut Vec<u8>) {
        bytes.extend(self.to_le_bytes());
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        Self::from_le_bytes(*bytes.first_chunk().expect("a bf16 has two bytes"))
    }
}
