//! A trainer that trains nothing: what it does, and what it writes. It keeps the contract of `hatchery_common::trainer`.
//!
//! The process that agents start in tests (`agent/examples/fake-trainer`), the simulator's trainers and the planter of
//! `cargo xtask bench fanout` are shells around it.

mod checkpoint;
mod orders;
mod run;

pub use checkpoint::{Place, metrics, noise, step_of, weights, write};
pub use orders::Orders;
pub use run::{Moments, Run, started};
