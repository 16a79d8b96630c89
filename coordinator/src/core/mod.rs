//! The event loop that alone owns the state, its handle, and the store behind it.

pub(crate) mod double_buffer;
pub(crate) mod event_loop;
pub(crate) mod handle;
pub(crate) mod observations;
pub(crate) mod store_thread;
