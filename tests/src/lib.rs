//! hatchery-tests
