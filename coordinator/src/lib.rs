//! The coordinator: the one server of a fleet. It keeps the job queue, decides and plans, and knows who holds what.
//!
//! [`run()`] starts one. All that changes the fleet goes through the event loop, which alone owns the state;
//! everything else is read from the snapshot that the loop has shown last.

mod addresses;
pub mod admin;
mod api;
mod collect;
mod core;
mod local_operator;
mod platform;
mod run;
mod sessions;
mod settings;
pub mod store;
mod views;

pub use core::event_loop::LoopError;
pub use core::store_thread::{StoreCall, StoreQueue};
pub use local_operator::CredentialsError;
pub use platform::{Host, Platform};
pub use run::{Ready, RunError, run, run_on};
pub use settings::{CoordinatorSettings, PORT, Settings};
