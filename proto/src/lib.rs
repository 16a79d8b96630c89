//! hatchery-proto
