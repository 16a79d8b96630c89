//! What this machine is, has and can do, and when it is its owner's.
//!
//! | file | its reason to change |
//! |---|---|
//! | `inventory`, `nvidia` | what the system, the driver and the trainer say of the machine |
//! | `survey` | what of it the coordinator is told |
//! | `metrics` | the figures of the moment that go with each report |
//! | `cpu_partition` | how the processor is divided between trainers |
//! | `calibration` | how fast each device trains |
//! | `gpu_guard` | which process has a GPU |
//! | `availability` | whether the devices are the fleet's or the owner's |
//! | `owner_watch` | looking at it again and again |

pub(crate) mod availability;
pub(crate) mod calibration;
pub(crate) mod cpu_partition;
pub(crate) mod gpu_guard;
pub(crate) mod inventory;
pub(crate) mod metrics;
pub(crate) mod nvidia;
pub(crate) mod owner_watch;
pub(crate) mod survey;
