//! The BDH training path on libtorch: model, data, optimizer, checkpoints, the run, and how fast a device is.
//!
//! The binary `hatchery-trainer` is this library behind a command line; the agent starts one process of it for each
//! attempt, by the contract in [`hatchery_common::trainer`].
//!
//! | file | its reason to change |
//! |---|---|
//! | `model`, `weights` | the equations of BDH; reads like the paper |
//! | `optimizer`, `learner` | AdamW; what one step does |
//! | `data`, `rng` | which bytes a step reads; randomness without state |
//! | `run`, `meter` | the loop: when to report, validate, save, stop |
//! | `control`, `report`, `failure`, `torch_error` | what may interrupt; how it is told; why it cannot go on |
//! | `checkpoint` | the folder: read with distrust, written to last |
//! | `evaluate`, `calibrate` | loss on other text; speed of a device |
//! | `fast` | loss and gradients by hand on a CPU in f32 |
//! | `fused` | the same everywhere else, on a GPU with kernels of its own |
//! | `recurrent`, `batching` | answers of many at once on a GPU |
//! | `device`, `cuda_library`, `cuda_absence`, `memory` | which devices there are, why not others, what fits |
//! | `command_line` | what its command line shares with the benchmarks' |
//! | `environment`, `ffi` | settings of the machine, and all that is unsafe |

pub mod batching;
pub mod calibrate;
pub mod checkpoint;
pub mod command_line;
pub mod control;
mod cuda_absence;
mod cuda_library;
pub mod data;
pub mod device;
pub mod dropout;
pub mod environment;
pub mod evaluate;
pub mod failure;
pub mod fast;
pub mod ffi;
pub mod fused;
pub mod learner;
pub mod memory;
mod meter;
pub mod model;
pub mod optimizer;
pub mod recurrent;
pub mod report;
pub mod rng;
pub mod run;
mod torch_error;
pub mod weights;
