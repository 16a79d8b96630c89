//! Trainers that outlived an agent which crashed. They stop by themselves when their stdin ends; before an attempt is
//! taken up again, the last of them must be gone.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use hatchery_common::durable::{self, FileError};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

/// Where a running trainer is noted, in its attempt's folder.
const PROCESS_FILE: &str = "process.json";
const PROCESS_BYTES_MAX: u64 = 4096;
/// How long an orphan may take for its last checkpoint.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A process, told from a later one of the same number by its start.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    id: u32,
    started_secs: u64,
}

/// Notes a trainer in its attempt's folder.
pub(crate) fn note(folder: &Path, id: u32) -> Result<(), FileError> {
    let Some(started_secs) = started_secs(id) else { return Ok(()) };
    let text = serde_json::to_vec(&Process { id, started_secs }).expect("two numbers are always JSON");
    durable::write_atomically(&folder.join(PROCESS_FILE), &text)
}

pub(crate) fn forget(folder: &Path) {
    // A note that stays names a process that is gone, which does no harm.
    let _stays = fs::remove_file(folder.join(PROCESS_FILE));
}

/// Waits for the trainer noted in an attempt's folder, if it still runs, and ends it when it takes too long. Blocks.
pub(crate) fn end(folder: &Path) {
    end_within(folder, ORPHAN_GRACE);
}

fn end_within(folder: &Path, grace: Duration) {
    let noted = durable::read_limited(&folder.join(PROCESS_FILE), PROCESS_BYTES_MAX).ok();
    let Some(process) = noted.and_then(|text| serde_json::from_slice::<Process>(&text).ok()) else { return };
    let until = Instant::now() + grace;
    let runs = || started_secs(process.id) == Some(process.started_secs);
    while runs() && Instant::now() < until {
        std::thread::sleep(LOOK_EVERY);
    }
    if runs()
        && let Some(group) = Pid::from_raw(process.id as i32)
    {
        tracing::warn!(process = process.id, "killing a trainer of an earlier agent that does not exit");
        // The only error is that it is gone already.
        let _gone = kill_process_group(group, Signal::KILL);
    }
    forget(folder);
}

/// When a process started, if it runs.
fn started_secs(id: u32) -> Option<u64> {
    let id = sysinfo::Pid::from_u32(id);
    let Ok(mut system) = System::new() else { return None };
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), true, ProcessRefreshKind::nothing());
    let process = system.process(id)?;
    // A zombie has ended; its parent has not asked yet.
    (process.status() != sysinfo::ProcessStatus::Zombie).then(|| process.start_time())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    #[test]
    fn one_that_stays_is_killed_and_a_later_process_of_its_number_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut orphan = std::process::Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        note(folder.path(), orphan.id()).unwrap();
        let noted = fs::read(folder.path().join(PROCESS_FILE)).unwrap();

        let mut other: Process = serde_json::from_slice(&noted).unwrap();
        other.started_secs -= 1;
        fs::write(folder.path().join(PROCESS_FILE), serde_json::to_vec(&other).unwrap()).unwrap();
        end_within(folder.path(), Duration::ZERO);
        assert!(orphan.try_wait().unwrap().is_none(), "it is another process");
        assert!(!folder.path().join(PROCESS_FILE).exists());

        fs::write(folder.path().join(PROCESS_FILE), noted).unwrap();
        end_within(folder.path(), Duration::ZERO);
        assert!(!orphan.wait().unwrap().success());
        end_within(folder.path(), Duration::ZERO);
    }
}
