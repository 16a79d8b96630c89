//! Full disks, lost disks, and bits that flip.

use std::{
    fs::{self, FileTimes, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, kill_process};

use super::{pause, restart_coordinator};
use crate::chaos::{
    clients::{Work, is_terminal, submit_directly, tells_of_a_full_disk},
    dice::Dice,
    evidence::blob_path,
    history::now_ms,
    member::Member,
    site::Site,
};

/// How long the disk stays full at most, if nobody is refused before.
const FULL_TRIES_MAX: usize = 5;
/// How long a machine that wants everything anew may take to find what is damaged: longer than it is ever cut off meanwhile.
const FOUND_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Nothing fits on the disk any more; somebody submits a text that is new.
pub(super) fn disk_full(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let limited = site.disk.is_mounted().is_err();
    if limited {
        site.kill_coordinator();
        site.start_coordinator("", &[("HATCHERY_COORDINATOR__BLOB_BYTES_MAX", "1")])?;
    } else {
        site.disk.fill(0)?;
    }
    let from_ms = now_ms();
    let request = dice.uuid();
    // More than what others may free meanwhile.
    let work =
        Work { own_text: true, text_kib: 1024, ..Work::steady(&format!("full-{}", &request[..6]), 20, 10) };
    for _ in 0..FULL_TRIES_MAX {
        let submission = submit_directly(site, &work, &request)?;
        // Without an answer, the network or the coordinator was hurt at the same time.
        if submission.is_acknowledged() || tells_of_a_full_disk(&submission.said) {
            break;
        }
        pause(dice, 200, 400);
    }
    pause(dice, 500, 1500);
    site.history.records().disk_full_ms.push((from_ms, now_ms()));
    site.disk.empty()?;
    // One that may not trust its disk any more has stopped.
    if limited || site.wait_for_coordinators_end(Duration::ZERO) {
        site.kill_coordinator();
    }
    restart_coordinator(site)?;
    // Now there is room for it.
    submit_directly(site, &work, &request)?;
    Ok(true)
}

/// Of a checkpoint of a job that has ended, a blob with weights, and the names of the nodes that hold it.
fn settled_checkpoint(site: &Site, dice: &mut Dice) -> Option<(String, Vec<String>)> {
    let checkpoints = site.ask(&["checkpoints", "--output", "json"]).json()?;
    let jobs = site.ask(&["jobs", "--output", "json"]).json()?;
    let ended: Vec<&str> = jobs
        .as_array()?
        .iter()
        .filter(|job| is_terminal(job["phase"].as_str().unwrap_or_default()))
        .filter_map(|job| job["checkpoint"].as_str())
        .collect();
    let held: Vec<(String, Vec<String>)> = checkpoints
        .as_array()?
        .iter()
        .filter(|one| one["id"].as_str().is_some_and(|id| ended.contains(&id)))
        .filter_map(|one| {
            let replicas = one["replicas"].as_array()?.iter();
            let ready = replicas.filter(|replica| replica["state"]["state"] == "ready");
            let nodes: Vec<String> =
                ready.filter_map(|one| Some(one["node_name"].as_str()?.to_owned())).collect();
            let files = one["manifest"]["files"].as_array()?;
            let blob_of = |name: &str| files.iter().find(|file| file["name"] == name)?["blob"].as_str();
            // Where there are weights in bf16, every node has those, and one alone may have the others.
            let weights = blob_of("model-bf16.safetensors").or_else(|| blob_of("model.safetensors"))?;
            (nodes.len() > 1).then(|| (weights.to_owned(), nodes))
        })
        .collect();
    dice.choose(&held).cloned()
}

/// A bit flips on the coordinator's disk; then a machine that has lost its own disk wants everything anew, while no
/// other machine is there: from those it might have all, and nobody would have read what is damaged. Also one that has not
/// this checkpoint may have the blob, of another job.
pub(super) fn blob_damaged(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let Some((blob, nodes)) = settled_checkpoint(site, dice) else {
        pause(dice, 300, 600);
        return Ok(false);
    };
    site.kill_coordinator();
    let (holders, others): (Vec<&Member>, Vec<&Member>) =
        site.agents().iter().partition(|member| nodes.contains(&member.name));
    for member in site.agents() {
        member.kill();
        for trainer in member.trainers() {
            let _ended = kill_process(trainer, Signal::KILL);
        }
    }
    let path = blob_path(&site.coordinator_state().join("blobs"), &blob);
    flip_bit(&path, dice)?;
    site.history.records().flipped.push(blob);
    restart_coordinator(site)?;
    let Some((lost, more)) = holders.split_first() else { return Ok(false) };
    lost.lose_disk()?;
    site.start_agent(lost, "")?;
    // Found damaged, it is put aside. Only then may others come: it may be cut off for now, and would have all from those.
    let begun = Instant::now();
    while path.exists() && begun.elapsed() < FOUND_WITHIN {
        thread::sleep(LOOK_EVERY);
    }
    // Nodes look for what the coordinator lacks whenever a session begins.
    more.iter().chain(&others).try_for_each(|member| site.start_agent(member, ""))?;
    pause(dice, 500, 1000);
    Ok(true)
}

/// A bit flips on an agent's disk while the agent is away.
pub(super) fn replica_damaged(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let Some((blob, nodes)) = settled_checkpoint(site, dice) else {
        pause(dice, 300, 600);
        return Ok(false);
    };
    let holder =
        dice.choose(&nodes).and_then(|name| site.agents().iter().find(|member| member.name == *name));
    let Some(member) = holder else { return Ok(false) };
    member.kill();
    let path = blob_path(&member.home.join("agent").join("blobs"), &blob);
    let is_there = path.exists();
    if is_there {
        flip_bit(&path, dice)?;
        site.history.records().replicas_flipped += 1;
    }
    site.start_agent(member, "")?;
    pause(dice, 500, 1500);
    Ok(is_there)
}

/// Changes one bit of a file as a bad disk would: nothing else about the file is another.
pub fn flip_bit(path: &Path, dice: &mut Dice) -> io::Result<()> {
    let before = fs::metadata(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    // Behind the header, so that what is damaged still looks like a model.
    let at = dice.between(before.len() / 2, before.len().saturating_sub(1));
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1 << dice.between(0, 7)], at)?;
    file.set_times(FileTimes::new().set_modified(before.modified()?))?;
    fs::set_permissions(path, before.permissions())
}
