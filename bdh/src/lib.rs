//! hatchery-bdh
