//! hatchery-agent

pub mod lease;
pub mod reconcile;
pub mod settings;

