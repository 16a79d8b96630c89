//! A consistent copy of a database that another process may be writing.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{StoreError, connection::BUSY_MAX};

/// Copies the database at `from` as it is at one instant into the new file `to`. Whoever writes to it goes on meanwhile.
/// The copy is not synced.
pub fn copy_database(from: &Path, to: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::of(from, source);
    // Not read-only: the log of a coordinator that was killed has to be taken in first.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(from, flags)
        .map_err(|source| StoreError::Open { path: from.to_owned(), source })?;
    connection.busy_timeout(BUSY_MAX).map_err(failed)?;
    let text = to.to_str().ok_or_else(|| failed(rusqlite::Error::InvalidPath(to.to_owned())))?;
    connection.execute("VACUUM INTO ?1", [text]).map(drop).map_err(failed)
}
