//! The connection: opening and checking the file, and the one way in which statements that write are run.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hatchery_common::faults;
use rusqlite::{Batch, Connection, OpenFlags, Params, Row, fallible_iterator::FallibleIterator};

use super::StoreError;

/// The formats, oldest first; format N is what the first N scripts make.
const MIGRATIONS: [&str; 5] = [
    include_str!("schema_1.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
    include_str!("schema_5.sql"),
];
/// How long to wait for another process, such as a person's `sqlite3`, to let go of the file.
pub(super) const BUSY_MAX: Duration = Duration::from_secs(5);
const STATEMENTS_KEPT_MAX: usize = 64;
/// Most faults of a damaged file that are told.
const FAULTS_TOLD_MAX: usize = 3;

/// An open, checked database of the newest format.
pub(super) struct Database {
    connection: Connection,
    path: PathBuf,
}

impl Database {
    /// Opens `path`, makes it if it is not there, checks it, and brings it to the newest format. It will not grow
    /// beyond `bytes_max`.
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Self::connect(path, flags)?;
        let format = database.check_format()?;
        database.check_integrity()?;
        database.configure(bytes_max).map_err(|source| StoreError::of(path, source))?;
        database.migrate(format)?;
        Ok(database)
    }

    /// Opens the file at `path`, which must be there, to look at it: whatever it is, nothing is checked, changed or
    /// brought to another format. Also whether its format is older than the newest.
    pub(super) fn open_as_it_is(path: &Path) -> Result<(Self, bool), StoreError> {
        let database =
            Self::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        let format = database.check_format()?;
        Ok((database, format < MIGRATIONS.len() as i64))
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, StoreError> {
        let connection = Connection::open_with_flags(path, flags)
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        Ok(Self { connection, path: path.to_owned() })
    }

    fn check_format(&self) -> Result<i64, StoreError> {
        self.connection.busy_timeout(BUSY_MAX).map_err(|source| self.error(source))?;
        let found: i64 = self
            .connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(|source| self.error(source))?;
        let known = MIGRATIONS.len() as i64;
        if found > known {
            return Err(StoreError::TooNew { path: self.path.clone(), found, known });
        }
        Ok(found)
    }

    /// What SQLite finds wrong with the file.
    pub(super) fn faults(&self) -> Result<Vec<String>, StoreError> {
        let mut faults = self.query("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))?;
        faults.retain(|line| line != "ok");
        let orphans = self.query("PRAGMA foreign_key_check", [], |row| row.get::<_, String>(0))?;
        faults.extend(orphans.iter().map(|table| format!("table {table} references missing rows")));
        Ok(faults)
    }

    fn check_integrity(&self) -> Result<(), StoreError> {
        let mut faults = self.faults()?;
        if faults.is_empty() {
            return Ok(());
        }
        faults.truncate(FAULTS_TOLD_MAX);
        Err(StoreError::Corrupt { path: self.path.clone(), detail: faults.join("; ") })
    }

    fn configure(&self, bytes_max: u64) -> rusqlite::Result<()> {
        let connection = &self.connection;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT_MAX);
        faults::strikes("store::statement");
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "full")?;
        // Where fsync alone leaves bytes in the drive's cache (macOS), ask for more; elsewhere these do nothing.
        connection.pragma_update(None, "fullfsync", true)?;
        connection.pragma_update(None, "checkpoint_fullfsync", true)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        let page_bytes: i64 = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let pages_max = (bytes_max / page_bytes as u64).max(1) as i64;
        connection.pragma_update_and_check(None, "max_page_count", pages_max, |_| Ok(()))
    }

    fn migrate(&self, format: i64) -> Result<(), StoreError> {
        for (script, becomes) in MIGRATIONS.iter().zip(1..).skip(format as usize) {
            self.transaction(|| {
                let mut statements = Batch::new(&self.connection, script);
                while let Some(mut statement) = statements.next().map_err(|source| self.error(source))? {
                    faults::strikes("store::statement");
                    statement.execute([]).map_err(|source| self.error(source))?;
                }
                faults::strikes("store::statement");
                self.connection
                    .pragma_update(None, "user_version", becomes)
                    .map_err(|source| self.error(source))
            })?;
        }
        Ok(())
    }

    /// Runs `body` in one transaction: durable if it is `Ok`, undone if not.
    pub(super) fn transaction<T>(
        &self,
        body: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let late = faults::strikes("mutant::commit_order");
        if late && !self.connection.is_autocommit() {
            self.execute("COMMIT", [])?;
        }
        self.execute("BEGIN IMMEDIATE", [])?;
        let commit = || if late { Ok(0) } else { self.execute("COMMIT", []) };
        let result = body().and_then(|value| commit().map(|_| value));
        if result.is_err() && !self.connection.is_autocommit() {
            // The first error is the one to tell; SQLite undoes what is left when the connection closes.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        faults::strikes("store::statement");
        result
    }

    /// Runs one statement that writes; how many rows it touched.
    pub(super) fn execute(&self, sql: &str, params: impl Params) -> Result<usize, StoreError> {
        faults::strikes("store::statement");
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(params))
            .map_err(|source| self.error(source))
    }

    /// Every row that `sql` gives.
    pub(super) fn query<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_map(params, read)?.collect())
            .map_err(|source| self.error(source))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, source: rusqlite::Error) -> StoreError {
        StoreError::of(&self.path, source)
    }
}
