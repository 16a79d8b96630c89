//! Whether this machine's devices are the fleet's just now, or its owner's.
//!
//! | file | |
//! |---|---|
//! | `hours` | the hours of a week as a person writes them |
//! | `judge` | owner's policy, what is seen, what was thought before -> available or away; pure |
//! | `usage` | what can be seen of the machine's other use |
//! | `watch` | looks again and again, and tells the agent's loop |

mod hours;
mod judge;
mod load;
mod usage;

pub use hours::{Hours, HoursError};
pub use judge::{AvailabilitySettings, Judgement};
pub use usage::Usage;
pub(crate) use usage::UsageMeter;
