//! hatchery-trainer
