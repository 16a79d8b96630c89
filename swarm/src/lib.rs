//! The fan-out of blobs: pure.
pub mod limits;
mod mean;
mod message;
mod random;
mod receiver;
mod server;
mod tracker;

pub use mean::DecayingMean;
pub use message::{AskId, ToChild, ToParent, Wanted};
pub use random::Random;
pub use receiver::{Arrival, Receiver, Step, Trouble};
pub use server::{AskRefused, Send, Server};
pub use tracker::{Because, Direction, Plan, Reach, Suspect, Tracker, Wait};
