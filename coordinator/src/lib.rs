//! The coordinator: the one server of a fleet. It keeps the job queue, decides and plans, and knows who holds what.
//!
//! [`run()`] starts one. All that changes the fleet goes through the event loop, which alone owns the state;
//! everything else is read from the snapshot that the loop has shown last.

mod access;
mod addresses;
pub mod admin;
mod collect;
mod describe;
mod event_loop;
mod fault;
mod generate;
mod ground;
mod house;
mod local_operator;
mod logs;
mod lookup;
mod mailbox;
mod observations;
mod placement;
mod refusal;
mod rollouts;
mod run;
mod services;
mod sessions;
mod settings;
pub mod store;
mod store_thread;
mod tracking;
mod twin;
mod view;
mod watch;

pub use event_loop::LoopError;
pub use ground::{Ground, Machine};
pub use local_operator::CredentialsError;
pub use run::{Ready, RunError, run, run_on};
pub use settings::{CoordinatorSettings, PORT, Settings};
pub use store_thread::{StoreCall, StoreQueue};
