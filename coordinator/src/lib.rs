//! hatchery-coordinator

pub mod store;
