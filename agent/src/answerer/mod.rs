//! Answers on a GPU: a process beside the agent that makes many at once, for as long as it is worth it.
//!
//! ```text
//! inference -- enter, move_to_card, move_at_work --> desk <-- open, hear, close -- keeper -- lines --> hatchery-trainer answer
//!                                                                                    |
//!                                    agent's loop, attempts -- offer, withdraw --> cards
//! ```
//!
//! Nothing waits for the card alone: an answer that waits for the processor goes to the card as soon as it is at its end
//! sooner there, one that the processor is at work on if that gains much, and what a card leaves unfinished goes on on the
//! processor from where it stood.
//!
//! | file | its reason to change |
//! |---|---|
//! | `choice` | where an answer is made, and when a process is started; pure |
//! | `desk` | what is known of both, and who is where |
//! | `keeper` | the life of the process |
//! | `process` | the process itself |
//! | `cards` | training has a card for itself |

mod cards;
mod choice;
mod desk;
mod keeper;
mod process;

pub(crate) use cards::Cards;
pub(crate) use choice::Work;
pub(crate) use desk::{Desk, OnCard, Part, Served, Ticket};
pub(crate) use keeper::Keeper;
pub use process::{AnswererProcess, Heard};
