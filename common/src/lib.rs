//! hatchery-common
