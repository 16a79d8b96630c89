//! Processes that the demo, the tests and the benchmarks start: found, watched, and ended.

mod daemon;
mod fleet;
mod interrupt;
mod programs;

pub use daemon::Daemon;
pub use fleet::{COORDINATOR, Fleet};
pub use interrupt::{GLANCE, Interrupt};
pub use programs::{binary, processes_with};
