//! hatchery-agent
