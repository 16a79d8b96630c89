//! hatchery-cli
