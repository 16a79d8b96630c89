//! The store: where events become durable.
//!
//! [`Store::commit`] is the one place in which the fleet's state moves on disk. It writes each event into the
//! append-only `events` and into the tables that the events come to, in one transaction, and checks there once more
//! that epochs and phases fit.

mod body;
mod compare;
mod connection;
mod copy;
mod error;
mod examine;
mod read;
mod sqlite;
mod write;

pub use compare::Difference;
pub use copy::copy_database;
pub use error::StoreError;
pub use examine::{Examination, examine};
pub use sqlite::SqliteStore;

use hatchery_scheduler::{Cluster, Event};

/// What keeps the cluster's state. One writer; every call blocks, so it lives on a thread of its own.
pub trait Store: Send {
    /// Reads the whole state, as all events together have made it.
    fn load(&mut self) -> Result<Cluster, StoreError>;

    /// Makes `events` durable, all or none, in their order.
    ///
    /// After an error nothing of them is visible and the store can be used on, except after [`StoreError::Io`] and
    /// [`StoreError::Corrupt`]: then stop the process, because nobody knows what the disk holds until it is read again.
    fn commit(&mut self, events: &[Event]) -> Result<(), StoreError>;

    /// The events after number `after`, oldest first, at most `limit` of them.
    fn events(&mut self, after: u64, limit: usize) -> Result<Vec<StoredEvent>, StoreError>;
}

/// An event with its number.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvent {
    /// Its number; the first is 1, and none is left out.
    pub seq: u64,
    pub event: Event,
}
