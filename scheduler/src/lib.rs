//! hatchery-scheduler
