//! The fan-out on simulated links: its own tracker, receivers and servers beside a star, a chain and pieces drawn at
//! random.

pub mod cases;
pub mod events;
pub mod fetch;
pub mod links;
pub mod report;
pub mod simulation;
pub mod upkeep;
