//! A small disk for the coordinator, which can be filled to its last byte.
//!
//! It is a tmpfs in a mount namespace of its own, which needs no rights beyond a user namespace. The process that holds
//! the namespace sleeps; those that are to see the disk are started in it, and files on it are seen from outside through
//! `/proc`. Where that is not allowed there is a plain folder, and the coordinator's own limit stands in for the disk's.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use hatchery_test_support::{Daemon, Interrupt};

/// Size of the disk.
pub(super) const DISK_BYTES: u64 = 192 << 20;
const BALLAST_FILE: &str = "ballast";
/// How long making the namespace may take.
const MOUNT_WITHIN: Duration = Duration::from_secs(10);
const CHUNK_BYTES: usize = 1 << 20;

pub struct Disk {
    folder: PathBuf,
    /// Holds the namespace. None: it is a plain folder.
    keeper: Option<Daemon>,
    why_not: String,
}

impl Disk {
    /// Makes the disk at `folder`, which is made too.
    pub fn mount(folder: &Path, log: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let script = format!(
            "mount -t tmpfs -o size={DISK_BYTES},mode=700 tmpfs '{}' && echo mounted && exec sleep infinity",
            folder.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
        let (keeper, why_not) = match Daemon::start_in_our_group("the disk", &mut command, log.to_owned()) {
            Ok(mut keeper) => match keeper.wait_for_line("mounted", MOUNT_WITHIN, &Interrupt::default()) {
                Ok(_) => (Some(keeper.killed_at_end()), String::new()),
                Err(_) => (None, keeper.output().trim().to_owned()),
            },
            Err(error) => (None, error.to_string()),
        };
        Ok(Self { folder: folder.to_owned(), keeper, why_not })
    }

    /// Whether it is a disk of its own; otherwise why not.
    pub fn is_mounted(&self) -> Result<(), &str> {
        if self.keeper.is_some() { Ok(()) } else { Err(&self.why_not) }
    }

    /// The folder as those processes see it that are started by [`Disk::command`].
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder as this process sees it.
    pub fn seen_from_here(&self) -> PathBuf {
        match &self.keeper {
            None => self.folder.clone(),
            Some(keeper) => {
                let inner = self.folder.strip_prefix("/").unwrap_or(&self.folder);
                Path::new("/proc").join(keeper.pid().to_string()).join("root").join(inner)
            }
        }
    }

    /// A command for `program` that sees the disk.
    pub fn command(&self, program: &Path) -> Command {
        let Some(keeper) = &self.keeper else { return Command::new(program) };
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &keeper.pid().to_string(),
            "--user",
            "--mount",
            "--preserve-credentials",
            "--",
        ]);
        command.arg(program);
        command
    }

    /// Fills it up to `spare_bytes`.
    pub fn fill(&self, spare_bytes: u64) -> io::Result<()> {
        let folder = self.seen_from_here();
        let stat = rustix::fs::statvfs(&folder)?;
        let mut left = (stat.f_bavail * stat.f_frsize).saturating_sub(spare_bytes);
        let mut file = File::create(folder.join(BALLAST_FILE))?;
        let chunk = vec![0xbb; CHUNK_BYTES];
        while left > 0 {
            let count = left.min(CHUNK_BYTES as u64);
            match file.write_all(&chunk[..count as usize]) {
                Ok(()) => left -= count,
                // Others write too.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub fn empty(&self) -> io::Result<()> {
        match fs::remove_file(self.seen_from_here().join(BALLAST_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}
