//! A check of everything in a state folder, and the repair of what can be proved.
//!
//! Three things are proof: events that are whole say what the tables must be; a blob's name says what its bytes must be; and a
//! temporary file belongs to nobody once the folder's lock is ours. Nothing else is repaired.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use hatchery_common::{
    blob::{BlobFault, BlobFolder},
    durable::{FileError, FolderLock},
    id::BlobId,
    time::Timestamp,
    tls::Authority,
};
use hatchery_scheduler::{Cluster, violations};
use serde::Serialize;

use super::{
    AdminError, Watcher, advance,
    parts::{AUTHORITY_FOLDER, BLOBS_FOLDER, DATABASE_FILE, check_state, named_blobs},
    restore::STAGING_FOLDER,
};
use crate::store::{Difference, Examination, examine};

/// Where the database is made anew.
const SCRATCH_PREFIX: &str = ".fsck-";
/// What an atomic write, and a backup into this folder, leave when they are cut off.
const CUT_OFF_PREFIXES: [&str; 2] = [".writing-", ".backup-"];
/// Most findings of one kind that are told one by one.
const FINDINGS_OF_A_KIND_MAX: usize = 1000;

/// What was found and done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    pub folder: PathBuf,
    /// The number of the last event.
    pub last_event: u64,
    /// How many blobs were read.
    pub blobs: usize,
    /// How many bytes they have.
    pub blob_bytes: u64,
    /// What was found, in the order in which it was looked for.
    pub findings: Vec<Finding>,
    /// Findings that are not listed, because there were too many like them.
    pub findings_left_out: usize,
}

/// One thing that is not as it should be, or that a person may want to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// What it is about: a file, a table, a blob.
    pub subject: String,
    /// What is wrong with it.
    pub problem: String,
    /// What was done, or is to be done.
    pub remedy: String,
    /// What has become of it.
    pub state: FindingState,
}

/// What kind of thing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// SQLite finds its file damaged.
    DatabaseDamaged,
    /// The events are not whole.
    EventsDamaged,
    /// A table is not what the events make.
    TableDiffers,
    /// The state breaks a rule.
    RuleBroken,
    /// The database has the format of an older version.
    FormatOlder,
    /// The program does not keep what it is told.
    ProgramFault,
    /// The authority's key or certificate.
    Authority,
    /// A blob that the records name is not here.
    BlobMissing,
    /// A blob is not what its name says.
    BlobDamaged,
    /// A blob that no record names.
    BlobUnnamed,
    /// A temporary file that nobody needs.
    Leftover,
    /// A file that is nothing of Hatchery's.
    Stranger,
}

/// What has become of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingState {
    Repaired,
    /// A repair was not asked for, and would do it.
    Repairable,
    /// A person has to do something.
    Open,
    /// Nothing has to be done.
    Note,
}

impl fmt::Display for FindingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Repaired => "repaired",
            Self::Repairable => "repairable",
            Self::Open => "open",
            Self::Note => "note",
        })
    }
}

impl FsckReport {
    /// Whether nothing is wrong, or nothing any more.
    pub fn is_sound(&self) -> bool {
        let done = |state| matches!(state, FindingState::Repaired | FindingState::Note);
        self.findings.iter().all(|finding| done(finding.state))
    }
}

/// Checks the state in `folder`, which no coordinator may be running on, and with `repair` puts right what it can.
pub fn fsck(folder: &Path, repair: bool, watcher: &mut dyn Watcher) -> Result<FsckReport, AdminError> {
    check_state(folder)?;
    let _lock = FolderLock::acquire(folder)?;
    let report = FsckReport {
        folder: folder.to_owned(),
        last_event: 0,
        blobs: 0,
        blob_bytes: 0,
        findings: Vec::new(),
        findings_left_out: 0,
    };
    let mut check = Check { folder, repair, watcher, report };
    // First, so that a scratch folder of ours is not taken for one.
    check.leftovers()?;
    let cluster = check.database()?;
    check.authority()?;
    check.blobs(cluster.as_ref())?;
    Ok(check.report)
}

struct Check<'a> {
    folder: &'a Path,
    repair: bool,
    watcher: &'a mut dyn Watcher,
    report: FsckReport,
}

impl Check<'_> {
    fn find(
        &mut self,
        kind: FindingKind,
        state: FindingState,
        subject: impl fmt::Display,
        problem: impl fmt::Display,
        remedy: impl fmt::Display,
    ) {
        let findings = &mut self.report.findings;
        if findings.iter().filter(|finding| finding.kind == kind).count() >= FINDINGS_OF_A_KIND_MAX {
            self.report.findings_left_out += 1;
            return;
        }
        let (subject, problem) = (subject.to_string(), problem.to_string());
        findings.push(Finding { kind, subject, problem, remedy: remedy.to_string(), state });
    }

    /// A finding that a repair puts right: does it, if it is wanted.
    fn mend(
        &mut self,
        kind: FindingKind,
        subject: impl fmt::Display,
        problem: impl fmt::Display,
        would: &str,
        repair: impl FnOnce() -> Result<String, AdminError>,
    ) -> Result<(), AdminError> {
        if self.repair {
            let done = repair()?;
            self.find(kind, FindingState::Repaired, subject, problem, done);
        } else {
            self.find(kind, FindingState::Repairable, subject, problem, format!("--repair {would}"));
        }
        Ok(())
    }

    fn leftovers(&mut self) -> Result<(), AdminError> {
        let ours = |name: &str| {
            let prefixed = |prefix: &&str| name.starts_with(*prefix);
            name == STAGING_FOLDER || [SCRATCH_PREFIX].iter().chain(&CUT_OFF_PREFIXES).any(prefixed)
        };
        for folder in [self.folder.to_owned(), self.folder.join(AUTHORITY_FOLDER)] {
            let failed = |error| FileError::new("list", &folder, error);
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed)?,
            };
            let paths = entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed));
            for path in paths.collect::<Result<Vec<_>, _>>()? {
                if path.file_name().and_then(|name| name.to_str()).is_some_and(ours) {
                    self.leftover(&path)?;
                }
            }
        }
        Ok(())
    }

    fn leftover(&mut self, path: &Path) -> Result<(), AdminError> {
        let subject = self.within(path);
        self.mend(FindingKind::Leftover, subject, "an unneeded temporary file", "removes it", || {
            let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.map_err(|error| FileError::new("remove", path, error))?;
            Ok("removed".to_owned())
        })
    }

    /// A path as seen from the folder.
    fn within(&self, path: &Path) -> String {
        path.strip_prefix(self.folder).unwrap_or(path).display().to_string()
    }

    /// Looks at the database; what the fleet's state is, as far as it can be known.
    fn database(&mut self) -> Result<Option<Cluster>, AdminError> {
        let path = self.folder.join(DATABASE_FILE);
        let failed = |error| FileError::new("write in", self.folder, error);
        let scratch =
            tempfile::Builder::new().prefix(SCRATCH_PREFIX).tempdir_in(self.folder).map_err(failed)?;
        self.watcher.phase("replaying the events", None);
        let found = examine(&path, scratch.path(), |_| advance(self.watcher, 0))?;
        self.report.last_event = found.last_event;
        let rules_hold = self.events(&found);
        if found.is_mendable() && rules_hold {
            self.mend_database(&path, &found)?;
        } else {
            self.tell_database(&found);
        }
        if found.older_format {
            let (problem, remedy) = (
                "written by an older version, so its tables were not compared",
                "the coordinator upgrades it at its next start",
            );
            self.find(FindingKind::FormatOlder, FindingState::Note, DATABASE_FILE, problem, remedy);
        }
        Ok(found.events.or(found.tables).ok())
    }

    /// Tells what is wrong with the events themselves; whether nothing is.
    fn events(&mut self, found: &Examination) -> bool {
        let remedy = format!("hatchery admin restore FILE --to {} --replace", self.folder.display());
        let cluster = match &found.events {
            Ok(cluster) => cluster,
            Err(why) => {
                let problem = format!("incomplete after number {}: {why}", found.last_event);
                self.find(FindingKind::EventsDamaged, FindingState::Open, "events", problem, &remedy);
                return false;
            }
        };
        let broken = violations(cluster);
        for violation in &broken {
            let problem = format!("broken invariant: {}", violation.rule);
            self.find(FindingKind::RuleBroken, FindingState::Open, &violation.subject, problem, &remedy);
        }
        if !found.is_faithful {
            let problem = "this version's tables do not reproduce its events";
            let remedy = "this is a bug: report it, and continue with the previous version";
            self.find(FindingKind::ProgramFault, FindingState::Open, "events", problem, remedy);
        }
        broken.is_empty() && found.is_faithful
    }

    fn mend_database(&mut self, path: &Path, found: &Examination) -> Result<(), AdminError> {
        let kept = self.folder.join(format!("{DATABASE_FILE}.before-repair-{}", Timestamp::now().0));
        if self.repair {
            self.watcher.phase("installing the rebuilt database", None);
            found.replace(path, &kept)?;
        }
        let done = format!("rebuilt from the events; the old file is {}", self.within(&kept));
        for (kind, subject, problem) in told(found) {
            self.mend(kind, subject, problem, "rebuilds it from the events", || Ok(done.clone()))?;
        }
        Ok(())
    }

    fn tell_database(&mut self, found: &Examination) {
        let remedy = format!("hatchery admin restore FILE --to {} --replace", self.folder.display());
        for (kind, subject, problem) in told(found) {
            self.find(kind, FindingState::Open, subject, problem, &remedy);
        }
    }

    fn authority(&mut self) -> Result<(), AdminError> {
        let folder = self.folder.join(AUTHORITY_FOLDER);
        let (has_key, has_certificate) =
            (folder.join(Authority::KEY_FILE).is_file(), folder.join(Authority::CERTIFICATE_FILE).is_file());
        let kind = FindingKind::Authority;
        if !has_key {
            let remedy = "take it from a backup: tar xOf FILE authority/authority.key.pem; without it no \
                 certificate is valid";
            self.find(kind, FindingState::Open, AUTHORITY_FOLDER, "the key is missing", remedy);
        } else if !has_certificate {
            let problem = "the certificate is missing";
            self.mend(kind, AUTHORITY_FOLDER, problem, "issues it again from the key", || {
                Authority::create_or_load(&folder)?;
                Ok("issued again from the key; everything it signed stays valid".to_owned())
            })?;
        } else if let Err(error) = Authority::create_or_load(&folder) {
            let remedy = "take both files from a backup: tar xf FILE authority";
            self.find(kind, FindingState::Open, AUTHORITY_FOLDER, error, remedy);
        }
        Ok(())
    }

    fn blobs(&mut self, cluster: Option<&Cluster>) -> Result<(), AdminError> {
        let root = self.folder.join(BLOBS_FOLDER);
        let folder = BlobFolder::at(&root);
        let listing = folder.list()?;
        for path in &listing.leftovers {
            self.leftover(path)?;
        }
        for path in &listing.strangers {
            let (subject, remedy) = (self.within(path), "ignored");
            self.find(FindingKind::Stranger, FindingState::Note, subject, "not a Hatchery file", remedy);
        }
        self.report.blobs = listing.blobs.len();
        self.report.blob_bytes = listing.blobs.iter().map(|blob| blob.size_bytes).sum();
        self.watcher.phase("reading the blobs", Some(self.report.blob_bytes));
        let mut gone = Vec::new();
        for blob in &listing.blobs {
            let read = folder.read(blob.id, |bytes| advance(self.watcher, bytes.len() as u64))?;
            if let Err(BlobFault::Damaged(problem)) = read {
                gone.push(blob.id);
                self.damaged(&folder, blob.id, &problem)?;
            }
        }
        let Some(cluster) = cluster else { return Ok(()) };
        let named = named_blobs(cluster);
        let (mut unnamed, mut unnamed_bytes) = (0, 0);
        for blob in listing.blobs.iter().filter(|blob| !named.contains_key(&blob.id)) {
            unnamed += 1;
            unnamed_bytes += blob.size_bytes;
        }
        if unnamed > 0 {
            let problem =
                format!("{unnamed} that no dataset or checkpoint references, {unnamed_bytes} bytes");
            let remedy = "kept: an upload may still be running";
            self.find(FindingKind::BlobUnnamed, FindingState::Note, BLOBS_FOLDER, problem, remedy);
        }
        for (id, named) in named {
            let is_there = listing.blobs.binary_search_by_key(&id, |blob| blob.id).is_ok();
            // One that is damaged and still in its place is told already.
            if !is_there || (self.repair && gone.contains(&id)) {
                let problem =
                    format!("{} references it ({} bytes), but it is missing", named.by, named.size_bytes);
                let remedy = if named.by.starts_with("dataset") {
                    "submit again with --data and the same files, or restore a backup made --with-blobs"
                } else {
                    "a node that holds the checkpoint uploads it when it connects"
                };
                self.find(FindingKind::BlobMissing, FindingState::Open, id, problem, remedy);
            }
        }
        Ok(())
    }

    fn damaged(&mut self, folder: &BlobFolder, id: BlobId, problem: &str) -> Result<(), AdminError> {
        let root = self.folder.to_owned();
        let would = "moves it to quarantine, so that it can be fetched again";
        self.mend(FindingKind::BlobDamaged, id, problem, would, || {
            let kept = folder.quarantine(id)?;
            Ok(format!("moved to {}", kept.strip_prefix(&root).unwrap_or(&kept).display()))
        })
    }
}

/// What is wrong with the database's file and tables.
fn told(found: &Examination) -> impl Iterator<Item = (FindingKind, String, String)> {
    let damage = found
        .damage
        .iter()
        .map(|fault| (FindingKind::DatabaseDamaged, DATABASE_FILE.to_owned(), fault.clone()));
    let differences = found.differences.iter().map(|Difference { table, surplus, missing, example }| {
        let subject =
            table.as_ref().map_or_else(|| "tables".to_owned(), |table| format!("table {table}"));
        let problem = format!(
            "differs from what the events make: rows too many or changed {surplus}, missing or changed {missing}; \
             one is {example}"
        );
        (FindingKind::TableDiffers, subject, problem)
    });
    damage.chain(differences)
}
