//! Randomness from a seed, for the thread that simulates.

use std::cell::RefCell;

#[cfg(target_os = "linux")]
use rand::Rng;
use rand::{SeedableRng, rngs::SmallRng};

thread_local! {
    static SOURCE: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
}

/// From here on this thread's randomness follows from `seed`. A thread can do that once: what it drew before stays.
pub(crate) fn seed(seed: u64) {
    SOURCE.set(Some(SmallRng::seed_from_u64(seed)));
}

/// Fills `bytes`, if this thread simulates.
#[cfg(target_os = "linux")]
pub(crate) fn fill(bytes: &mut [u8]) -> bool {
    let filled = SOURCE.try_with(|source| {
        let Ok(mut source) = source.try_borrow_mut() else { return false };
        source.as_mut().is_some_and(|source| {
            source.fill_bytes(bytes);
            true
        })
    });
    // A thread that ends has none any more.
    filled.unwrap_or(false)
}
