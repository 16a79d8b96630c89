//! Whole-system tests: the harness. It starts the real binaries, types what a person would type, and reads what a
//! person would read. The tests themselves are in `tests/tests/`.

pub mod chaos;
mod fleet;
mod process;
mod terminal;

pub use fleet::{Fleet, Run, corpus, run};
pub use hatchery_test_support::processes_with;
pub use process::{PATIENCE, Process, binary};
pub use terminal::{CTRL_C, Terminal};
