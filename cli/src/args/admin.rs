//! `hatchery admin`: the chores around a coordinator's state folder.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `hatchery admin`.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Back up the coordinator's state to one file; the coordinator may keep running.
    Backup(BackupArgs),
    /// Restore a backup into a state folder; its coordinator must not be running.
    Restore(RestoreArgs),
    /// Check a state folder, and repair it where the repair is certain; its coordinator must not be running.
    Fsck(FsckArgs),
}

/// `hatchery admin backup`.
#[derive(Debug, Args)]
#[command(after_help = "\
Run it on the coordinator's machine, under the coordinator's account. It reads the state folder
directly; the coordinator may keep running, and the backup holds the state at one instant. It contains
the authority's private key, which never crosses the network. The file has mode 0600; whoever holds it
can impersonate anyone in the fleet, so guard it like the key itself.

Included: the database (jobs, nodes, checkpoint manifests, digests of join strings, certificates,
history), the authority and, with --with-blobs, datasets and checkpoints. Excluded: logs, settings and
this terminal's credentials. Without blobs, nodes upload the checkpoints they hold once they connect,
and a dataset returns with the next `hatchery submit --data` of the same files.

The backup is a plain tar file. It appears under its name only once it is complete and on disk.

Examples:
  hatchery admin backup /backups/hatchery-$(date +%F).tar
  hatchery admin backup everything.tar --with-blobs
  tar xOf everything.tar manifest.json               # its contents
  head -c -2048 everything.tar | b3sum               # must equal `tar xOf everything.tar seal`")]
pub(crate) struct BackupArgs {
    /// Backup file to write; must not exist.
    pub(crate) file: PathBuf,
    /// Include datasets and checkpoints; each is verified while it is copied.
    #[arg(long)]
    pub(crate) with_blobs: bool,
    /// State folder [default: from the coordinator's settings on this machine].
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: Option<PathBuf>,
}

/// `hatchery admin restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Every byte of the backup is verified before anything changes; a damaged file is refused. First make sure
that the old coordinator never starts again: the fleet would trust both, as they share an authority.

The restored coordinator has the jobs, nodes, checkpoints and certificates of the backup. Agents connect
with their existing certificates if they find it at its old address. Everything after the backup is lost:
  attempts     end; jobs that have not ended resume from their last checkpoint in the backup, under
               new attempt numbers: trainers of older attempts are refused
  jobs         submitted later are gone: submit them again
  checkpoints  made later are dropped by the nodes a minute after they connect
  nodes        joined later are refused: join them again
  certificates revoked later, and join strings used later, are valid again: see `certificate list`

Examples:
  hatchery admin restore /backups/hatchery-2026-11-26.tar --to ~/.hatchery/coordinator
  hatchery admin restore everything.tar --to /srv/hatchery
  HATCHERY_COORDINATOR__STATE=/srv/hatchery hatchery coordinator")]
pub(crate) struct RestoreArgs {
    /// Backup file, from `hatchery admin backup`.
    pub(crate) file: PathBuf,
    /// State folder to create; must be new or empty.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) to: PathBuf,
    /// Accept a folder that is not empty; its contents are kept in a subfolder.
    #[arg(long)]
    pub(crate) replace: bool,
}

/// `hatchery admin fsck`.
#[derive(Debug, Args)]
#[command(after_help = "\
Checks the database (SQLite's own checks, every table against the history, all invariants), the
authority, every byte of every blob against the records, and leftover files.

Repairs made by --repair:
  tables that differ      are rebuilt from the history, if it is intact; the old file is kept
  damaged blobs           are moved to quarantine, so that they can be fetched again
  a lost certificate      of the authority is issued again from its key
  temporary files         are removed

Exits with 1 if problems remain.")]
pub(crate) struct FsckArgs {
    /// Repair problems, as listed below.
    #[arg(long)]
    pub(crate) repair: bool,
    /// State folder [default: from the coordinator's settings on this machine].
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: Option<PathBuf>,
}
