//! `hatchery admin`: the chores around a coordinator's state folder.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `hatchery admin`.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Write a backup of the coordinator's state into one file, whether it runs or not.
    Backup(BackupArgs),
    /// Make a state folder out of a backup; its coordinator must not run.
    Restore(RestoreArgs),
    /// Check everything in a state folder, and repair what can be proved; its coordinator must not run.
    Fsck(FsckArgs),
}

/// `hatchery admin backup`.
#[derive(Debug, Args)]
#[command(after_help = "\
Run it on the coordinator's own machine, as the account that the coordinator runs as. It reads the
state folder and asks nothing of the coordinator, which may run and goes on meanwhile: the backup
holds the state of one instant. The authority's key is in it and never goes over the network: the
file is 0600, and whoever has it can be anyone in the fleet, so keep it as you would keep that key.

In it: the database (jobs, nodes, checkpoints' manifests, digests of join strings, certificates, the
history), the authority, and with --with-blobs the datasets and checkpoints themselves. Not in it:
logs, settings, this terminal's credentials. Without the blobs, nodes bring back those of the
checkpoints that they hold once they connect, and a dataset comes back with the next
`hatchery submit --data` of the same files.

The file is a plain tar file. It appears under its name once it is whole and on the disk.

Examples:
  hatchery admin backup /backups/hatchery-$(date +%F).tar
  hatchery admin backup everything.tar --with-blobs
  tar xOf everything.tar manifest.json               # what is in it
  head -c -2048 everything.tar | b3sum               # must be what `tar xOf everything.tar seal` says")]
pub(crate) struct BackupArgs {
    /// The file to write; it must not be there.
    pub(crate) file: PathBuf,
    /// Datasets and checkpoints, too; each is checked while it is copied.
    #[arg(long)]
    pub(crate) with_blobs: bool,
    /// The state folder [default: that of the coordinator's settings on this machine].
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: Option<PathBuf>,
}

/// `hatchery admin restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Every byte of the backup is checked before anything is put in place; a damaged file is refused and
changes nothing. First see to it that the old coordinator is gone for good: two with the same
authority would both be believed.

A coordinator started on the folder has the jobs, nodes, checkpoints and certificates of the backup,
and agents connect with the certificates that they have, if it is reached at the address that they
know. What happened after the backup is not known any more:
  attempts     all end, and jobs that have not ended go on from their last checkpoint in the backup,
               under numbers above any that was ever given: whoever works under an older one is refused
  jobs         that were submitted later are not there: submit them again
  checkpoints  that were made later are dropped by the nodes a minute after they connect
  nodes        that joined later are refused: join them again
  revoked      certificates and used join strings of later are good again: see `certificate list`

Examples:
  hatchery admin restore /backups/hatchery-2026-11-26.tar --to ~/.hatchery/coordinator
  hatchery admin restore everything.tar --to /srv/hatchery
  HATCHERY_COORDINATOR__STATE=/srv/hatchery hatchery coordinator")]
pub(crate) struct RestoreArgs {
    /// A file that `hatchery admin backup` wrote.
    pub(crate) file: PathBuf,
    /// The state folder to make: new, or empty.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) to: PathBuf,
    /// Take a folder that is not empty; what is there is put aside within it and kept.
    #[arg(long)]
    pub(crate) replace: bool,
}

/// `hatchery admin fsck`.
#[derive(Debug, Args)]
#[command(after_help = "\
What is looked at: the database (SQLite's own checks; every table against what the history makes of
it; the rules that always hold), the authority, every blob (each byte read and hashed) against the
records, and files left behind.

What --repair does, and nothing else:
  tables that differ      are made anew from the history, if that is whole; the old file is kept beside
  a damaged blob          is moved into quarantine, so that it can come again
  a lost certificate      of the authority is made again from its key
  temporary files         are removed

Ends with 1 if anything is left that is wrong.")]
pub(crate) struct FsckArgs {
    /// Put right what can be put right.
    #[arg(long)]
    pub(crate) repair: bool,
    /// The state folder [default: that of the coordinator's settings on this machine].
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state: Option<PathBuf>,
}
