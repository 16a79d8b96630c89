//! What is kept up with each connected agent: its session, and all that travels over it.

pub(crate) mod generations;
pub(crate) mod logs;
pub(crate) mod registry;
pub(crate) mod session;
pub(crate) mod tracking;
