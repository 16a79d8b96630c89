//! The store on SQLite.

use std::path::Path;

use hatchery_common::time::Timestamp;
use hatchery_scheduler::{Cluster, Event};

use super::{Store, StoreError, StoredEvent, body, connection::Database, read, write};

/// One SQLite file: WAL, every commit on the disk before it is answered, checked whole when it is opened.
pub struct SqliteStore {
    database: Database,
}

impl SqliteStore {
    /// The largest file that [`SqliteStore::open`] lets grow, in bytes.
    pub const BYTES_MAX: u64 = 64 << 30;

    /// Opens the database file at `path`, or makes it. The folder is the caller's to lock.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_bounded(path, Self::BYTES_MAX)
    }

    /// The same, with a limit of its own in bytes: beyond it, commits answer [`StoreError::Full`].
    pub fn open_bounded(path: &Path, bytes_max: u64) -> Result<Self, StoreError> {
        Ok(Self { database: Database::open(path, bytes_max)? })
    }
}

impl Store for SqliteStore {
    fn load(&mut self) -> Result<Cluster, StoreError> {
        read::cluster(&self.database)
    }

    fn commit(&mut self, events: &[Event]) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        self.database.transaction(|| {
            events.iter().try_for_each(|event| {
                write::event(&self.database, event)?;
                write::rows(&self.database, event)
            })
        })
    }

    fn events(&mut self, after: u64, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        let sql = "SELECT seq, at, body FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let window = (i64::try_from(after).unwrap_or(i64::MAX), i64::try_from(limit).unwrap_or(i64::MAX));
        let rows = self.database.query(sql, window, |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?))
        })?;
        rows.into_iter()
            .map(|(seq, at, body)| {
                let event = body::parse(Timestamp(at as u64), &body);
                let event = event.map_err(|why| read::unreadable(&self.database, "events", why))?;
                Ok(StoredEvent { seq: seq as u64, event })
            })
            .collect()
    }
}
