//! The trainer program as processes: one that trains, one that answers on a GPU, and short runs that measure.
//!
//! | file | its reason to change |
//! |---|---|
//! | `child_process` | a process that is spoken to in lines and never left behind |
//! | `process`, `answerer` | what a trainer and an answerer say |
//! | `stderr_log` | a trainer's output, kept and read in parts |
//! | `orphan` | trainers that an earlier agent left |
//! | `tool` | short runs: `doctor` and `calibrate` |

pub mod answerer;
mod child_process;
pub(crate) mod orphan;
pub mod process;
pub mod stderr_log;
pub mod tool;
