//! The arithmetic of the fast path: f32 to train, f64 to be checked.

use std::ops::{Add, Div, Mul, Sub};

/// f32 or f64.
pub trait Number:
    tch::kind::Element
    + Copy
    + Send
    + Sync
    + 'static
    + PartialOrd
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + std::fmt::Debug
{
    /// 1
    const ONE: Self;
    fn from_f64(number: f64) -> Self;
    fn to_f64(self) -> f64;
    /// The larger one; a NaN stays, so that it is found.
    #[must_use]
    fn max(self, other: Self) -> Self;
    #[must_use]
    fn sqrt(self) -> Self;
    /// self * factor + term: rounded once where the machine does that by itself (`FUSED`), else twice.
    #[must_use]
    fn multiply_add<const FUSED: bool>(self, factor: Self, term: Self) -> Self;
    /// e to this power.
    #[must_use]
    fn exp(self) -> Self;
}

macro_rules! number {
    ($number:ident) => {
        impl Number for $number {
            const ONE: Self = 1.0;
            #[allow(clippy::cast_possible_truncation, trivial_numeric_casts)]
            fn from_f64(number: f64) -> Self {
                number as Self
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            #[allow(clippy::inline_always, reason = "part of loops compiled for several instruction sets")]
            fn max(self, other: Self) -> Self {
                if self < other { other } else { self }
            }
            #[inline(always)]
            #[allow(clippy::inline_always, reason = "part of loops compiled for several instruction sets")]
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            #[allow(clippy::inline_always, reason = "part of loops compiled for several instruction sets")]
            fn multiply_add<const FUSED: bool>(self, factor: Self, term: Self) -> Self {
                if FUSED { self.mul_add(factor, term) } else { self * factor + term }
            }
            fn exp(self) -> Self {
                self.exp()
            }
        }
    };
}

number!(f32);
number!(f64);
