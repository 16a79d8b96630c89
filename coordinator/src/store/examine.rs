//! A database looked at from all sides, and made anew out of its events. The folder is the caller's to lock.
//!
//! The events say everything, so the tables can be made a second time, by the very code that made them the first time.
//! What differs then is wrong in the tables, provided that the events themselves are whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use hatchery_common::{
    durable::{self, FileError},
    faults,
    time::Timestamp,
};
use hatchery_scheduler::Cluster;
use rusqlite::params;

use super::{
    SqliteStore, StoreError, body,
    compare::{self, Difference},
    connection::Database,
    read, write,
};

/// Events read and made anew at a time.
const EVENTS_AT_ONCE: i64 = 1000;
/// Most faults that SQLite is asked for.
const FAULTS_MAX: usize = 20;

#[derive(Debug)]
pub struct Examination {
    /// What SQLite itself finds wrong with the file.
    pub damage: Vec<String>,
    /// The number of the last event that could be read and, in order, made sense.
    pub last_event: u64,
    pub last_event_at: Timestamp,
    /// What the events come to; or why they are not whole.
    pub events: Result<Cluster, String>,
    /// What the tables come to; or why they cannot be read.
    pub tables: Result<Cluster, String>,
    /// Tables whose rows are not those that the events make. Empty where that could not be looked at.
    pub differences: Vec<Difference>,
    /// An older version wrote it, so its tables are not those of this one and were not compared.
    pub older_format: bool,
    /// Whether this version's tables give back what its events say. If not, the program is at fault and not the file.
    pub is_faithful: bool,
    /// The database made anew, if the events are whole.
    rebuilt: Option<PathBuf>,
}

impl Examination {
    /// Whether there is something that [`Examination::replace`] would put right.
    pub fn is_mendable(&self) -> bool {
        self.rebuilt.is_some() && (!self.damage.is_empty() || !self.differences.is_empty())
    }

    /// Puts the database made anew in the place of the one at `path`, at once, and keeps that one as `kept`.
    pub fn replace(&self, path: &Path, kept: &Path) -> Result<(), FileError> {
        let Some(rebuilt) = &self.rebuilt else { return Ok(()) };
        // A log that is still there would be taken for that of the new file, and without it the old one is not whole.
        let log = log_of(path);
        if fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            let why = io::Error::other("SQLite could not apply it to the database");
            return Err(FileError::new("merge", &log, why));
        }
        faults::strikes("admin::step");
        fs::hard_link(path, kept).map_err(|error| FileError::new("keep a copy of", path, error))?;
        let file = fs::File::open(rebuilt).map_err(|error| FileError::new("open", rebuilt, error))?;
        durable::sync_file(&file, rebuilt)?;
        faults::strikes("admin::step");
        durable::rename(rebuilt, path)?;
        faults::strikes("admin::step");
        Ok(())
    }
}

/// Where SQLite keeps the log of the database at `path`.
fn log_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Looks at the database at `path`. It is made anew in the folder `scratch`, on the same file system; `on_event` is told
/// each number that is reached, and ends it by an error.
pub fn examine<E: From<StoreError>>(
    path: &Path,
    scratch: &Path,
    mut on_event: impl FnMut(u64) -> Result<(), E>,
) -> Result<Examination, E> {
    let mut found = Examination {
        damage: Vec::new(),
        last_event: 0,
        last_event_at: Timestamp(0),
        events: Err("the file cannot be opened".to_owned()),
        tables: Err("the file cannot be opened".to_owned()),
        differences: Vec::new(),
        older_format: false,
        is_faithful: true,
        rebuilt: None,
    };
    let database = match Database::open_as_it_is(path) {
        Ok((database, older_format)) => {
            found.older_format = older_format;
            database
        }
        Err(StoreError::Corrupt { detail, .. }) => {
            found.damage.push(detail);
            return Ok(found);
        }
        Err(error) => return Err(error.into()),
    };
    match database.faults() {
        Ok(faults) => found.damage = faults,
        Err(error) => found.damage.push(error.to_string()),
    }
    found.damage.truncate(FAULTS_MAX);
    found.tables = read::cluster(&database).map_err(|error| error.to_string());

    let rebuilt = scratch.join("rebuilt.db");
    let mut replay =
        Replay { database: &database, new: Database::open(&rebuilt, SqliteStore::BYTES_MAX)?, found };
    let whole = replay.run(&mut on_event)?;
    let Replay { new, mut found, .. } = replay;
    let Ok(cluster) = &found.events else { return Ok(found) };
    if !whole {
        return Ok(found);
    }
    found.is_faithful = read::cluster(&new)? == *cluster;
    drop(new);
    if !found.older_format {
        match compare::differences(&database, &rebuilt) {
            Ok(differences) => found.differences = differences,
            Err(error) => found.damage.push(error.to_string()),
        }
    }
    found.rebuilt = found.is_faithful.then_some(rebuilt);
    Ok(found)
}

/// One event as it stands.
struct Row {
    seq: i64,
    at: i64,
    kind: String,
    job: Option<String>,
    body: String,
}

struct Replay<'a> {
    database: &'a Database,
    new: Database,
    found: Examination,
}

impl Replay<'_> {
    /// Goes through all events; false if they are not whole.
    fn run<E: From<StoreError>>(
        &mut self,
        on_event: &mut impl FnMut(u64) -> Result<(), E>,
    ) -> Result<bool, E> {
        let (mut cluster, mut last_event_at) = (Cluster::default(), Timestamp(0));
        loop {
            let rows = match self.rows(cluster.last_event) {
                Ok(rows) if rows.is_empty() => {
                    self.found.events = Ok(cluster);
                    return Ok(true);
                }
                Ok(rows) => rows,
                Err(error) => return Ok(self.broken(format!("they cannot be read: {error}"))),
            };
            let new = &self.new;
            let taken = new.transaction(|| {
                for row in &rows {
                    match take(new, &mut cluster, row)? {
                        Ok(at) => last_event_at = at,
                        Err(why) => return Ok(Err(format!("event {}: {why}", row.seq))),
                    }
                }
                Ok(Ok(()))
            })?;
            // What was read, before what was wrong with it.
            (self.found.last_event, self.found.last_event_at) = (cluster.last_event, last_event_at);
            on_event(cluster.last_event)?;
            if let Err(why) = taken {
                return Ok(self.broken(why));
            }
        }
    }

    fn broken(&mut self, why: String) -> bool {
        self.found.events = Err(why);
        false
    }

    fn rows(&self, after: u64) -> Result<Vec<Row>, StoreError> {
        let sql = "SELECT seq, at, kind, job, body FROM events WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        self.database.query(sql, params![after as i64, EVENTS_AT_ONCE], |row| {
            Ok(Row {
                seq: row.get("seq")?,
                at: row.get("at")?,
                kind: row.get("kind")?,
                job: row.get("job")?,
                body: row.get("body")?,
            })
        })
    }
}

/// Takes one event on: in memory, and as rows. The inner error says what is wrong with it.
fn take(new: &Database, cluster: &mut Cluster, row: &Row) -> Result<Result<Timestamp, String>, StoreError> {
    let expected = cluster.last_event + 1;
    if row.seq as u64 != expected {
        return Ok(Err(format!("event {expected} is missing")));
    }
    let event = match body::parse(Timestamp(row.at as u64), &row.body) {
        Ok(event) => event,
        Err(why) => return Ok(Err(why)),
    };
    let said = (row.kind.as_str(), row.job.clone());
    if said != (event.what.kind(), event.what.job().map(|job| job.to_string())) {
        return Ok(Err("its columns do not match its body".to_owned()));
    }
    let sql = "INSERT INTO events (seq, at, kind, job, body) VALUES (?1, ?2, ?3, ?4, ?5)";
    new.execute(sql, params![row.seq, row.at, row.kind, row.job, row.body])?;
    match write::rows(new, &event) {
        Ok(()) => {}
        Err(error @ StoreError::Stale { .. }) => return Ok(Err(error.to_string())),
        Err(error) => return Err(error),
    }
    cluster.evolve(&event);
    Ok(Ok(event.at))
}
