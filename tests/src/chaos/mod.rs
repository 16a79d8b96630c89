//! Chaos: real processes on this machine, hurt on purpose while they are used, and a check of everything that must hold.
//!
//! ```text
//! clients (type commands) -- proxy --> coordinator (on a small disk) <-- proxy -- agents -- fake trainers
//!              `-------------- history, evidence --> checks I1 to I12 <--------------------------'
//! ```
//!
//! | file | its reason to change |
//! |---|---|
//! | `runner` | how a run goes, and what it must come to |
//! | `site`, `member`, `disk`, `proxy` | the fleet and what it stands on |
//! | `clients` | how it is used |
//! | `faults`, `dice` | what is done to it |
//! | `history`, `evidence` | what is known of a run |
//! | `check/` | what must hold |
//! | `recovery` | how long jobs stood still |

pub mod check;
pub mod clients;
pub mod dice;
mod disk;
pub mod evidence;
pub mod faults;
pub mod history;
pub mod member;
pub mod proxy;
mod recovery;
mod runner;
pub mod site;

pub use runner::{Plan, Report, run};
