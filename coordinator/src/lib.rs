//! hatchery-coordinator
