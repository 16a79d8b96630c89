//! The BDH training path on libtorch: model, data, optimizer, checkpoints, the run, and how fast a device is.
//!
//! The binary `hatchery-trainer` is this library behind a command line; the agent starts one process of it for each
//! attempt. [`model`] reads like the paper, [`run`] is the loop, [`checkpoint`] what remains.

pub mod calibrate;
pub mod checkpoint;
pub mod control;
pub mod counter;
pub mod data;
pub mod device;
pub mod evaluate;
pub mod failure;
pub mod ffi;
pub mod learner;
mod meter;
pub mod model;
pub mod openmp;
pub mod optimizer;
pub mod report;
pub mod run;
pub mod weights;
