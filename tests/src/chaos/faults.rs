//! What is done to the fleet. Two hands do it at the same time, one to processes and disks, one to the network; each goes
//! through its whole list in an order that the seed gives, then through it again.

use std::{
    fs::{self, FileTimes, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    thread,
    time::Duration,
};

use rustix::process::{Signal, kill_process};

use super::{
    clients::{Work, is_terminal, submit_directly, tells_of_a_full_disk},
    dice::Dice,
    evidence::blob_path,
    history::now_ms,
    proxy::Mode,
    site::{Member, Site},
};

/// Points at which a coordinator is killed, each with the most times that it is passed before.
const COORDINATOR_POINTS: [(&str, u64); 7] = [
    ("store::statement", 60),
    ("durable::before_sync", 12),
    ("durable::before_rename", 12),
    ("durable::before_folder_sync", 12),
    ("event_loop::before_commit", 10),
    ("event_loop::after_commit", 10),
    ("event_loop::before_reply", 4),
];
/// Points at which an agent is killed.
const AGENT_POINTS: [(&str, u64); 5] = [
    ("durable::before_sync", 12),
    ("durable::before_rename", 12),
    ("durable::before_folder_sync", 12),
    ("deliver::before_commit", 3),
    ("deliver::after_commit", 3),
];
/// Points at which a write fails.
const FAILING_POINTS: [&str; 3] =
    ["durable::before_sync", "durable::before_rename", "durable::before_folder_sync"];
/// How long a process is given to reach the point at which it is killed.
const REACH_WITHIN: Duration = Duration::from_secs(4);
/// How long a clean end may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(30);
/// How long the disk stays full at most, if nobody is refused before.
const FULL_TRIES_MAX: usize = 5;

/// Something that is done to the fleet.
pub struct Fault {
    /// What it is called.
    pub name: &'static str,
    act: fn(&Site, &mut Dice) -> io::Result<()>,
}

/// What is done to processes and disks.
pub const TO_PROCESSES: [Fault; 14] = [
    Fault { name: "coordinator killed", act: coordinator_killed },
    Fault { name: "coordinator killed at a point", act: coordinator_killed_at_point },
    Fault { name: "coordinator's writes fail", act: coordinators_writes_fail },
    Fault { name: "coordinator stopped", act: coordinator_stopped },
    Fault { name: "coordinator ended", act: coordinator_ended },
    Fault { name: "coordinator's disk full", act: disk_full },
    Fault { name: "coordinator's blob damaged", act: blob_damaged },
    Fault { name: "agent killed", act: agent_killed },
    Fault { name: "agent killed at a point", act: agent_killed_at_point },
    Fault { name: "agent stopped", act: agent_stopped },
    Fault { name: "agent ended", act: agent_ended },
    Fault { name: "agent's replica damaged", act: replica_damaged },
    Fault { name: "trainer killed", act: trainer_killed },
    Fault { name: "trainer stopped", act: trainer_stopped },
];

/// What is done to the network.
pub const TO_THE_NETWORK: [Fault; 8] = [
    Fault { name: "agent in a black hole", act: |site, dice| agent_network(site, dice, Mode::Blackhole) },
    Fault { name: "agent deaf", act: |site, dice| agent_network(site, dice, Mode::DeafClient) },
    Fault { name: "agent mute", act: |site, dice| agent_network(site, dice, Mode::MuteClient) },
    Fault {
        name: "agent's network slow",
        act: |site, dice| {
            let delay = Mode::Delay(Duration::from_millis(dice.between(20, 300)));
            agent_network(site, dice, delay)
        },
    },
    Fault {
        name: "agent's network narrow",
        act: |site, dice| {
            let narrow = Mode::Bandwidth(dice.between(10, 200) << 10);
            agent_network(site, dice, narrow)
        },
    },
    Fault { name: "agent's connections reset", act: |site, dice| agent_network(site, dice, Mode::Reset) },
    Fault { name: "all agents cut off", act: all_cut_off },
    Fault { name: "people cut off", act: people_cut_off },
];

impl Fault {
    /// Does it, waits for as long as it is to last, and undoes it.
    pub fn strike(&self, site: &Site, dice: &mut Dice) -> io::Result<()> {
        (self.act)(site, dice)?;
        site.history.fault(self.name);
        Ok(())
    }
}

/// Undoes whatever may still be done to the fleet.
pub fn heal(site: &Site) -> io::Result<()> {
    site.people.set(Mode::Pass);
    site.disk.empty()?;
    site.signal_coordinator(Signal::CONT);
    restart_coordinator(site)?;
    for member in site.agents() {
        member.proxy.set(Mode::Pass);
        member.signal(Signal::CONT);
        for trainer in member.trainers() {
            let _ended = kill_process(trainer, Signal::CONT);
        }
        site.start_agent(member, "")?;
    }
    Ok(())
}

/// Starts the coordinator without fault points, if it does not run.
fn restart_coordinator(site: &Site) -> io::Result<()> {
    if site.start_coordinator("", &[])? {
        return Ok(());
    }
    let log = fs::read_to_string(site.log("coordinator")).unwrap_or_default();
    let last: Vec<&str> = log.lines().rev().take(20).collect();
    Err(io::Error::other(format!(
        "the coordinator does not start again; its last lines, newest first:\n{}",
        last.join("\n")
    )))
}

fn some_agent<'a>(site: &'a Site, dice: &mut Dice) -> io::Result<&'a Member> {
    dice.choose(site.agents()).ok_or_else(|| io::Error::other("there is no agent"))
}

fn pause(dice: &mut Dice, least_ms: u64, most_ms: u64) {
    thread::sleep(Duration::from_millis(dice.between(least_ms, most_ms)));
}

/// A part of a lease and a bit more than one.
fn about_a_lease(site: &Site, dice: &mut Dice) -> Duration {
    let lease_ms = site.lease().as_millis() as u64;
    Duration::from_millis(dice.between(lease_ms / 4, lease_ms * 3 / 2))
}

fn coordinator_killed(site: &Site, dice: &mut Dice) -> io::Result<()> {
    site.kill_coordinator();
    if dice.one_in(2) {
        thread::sleep(about_a_lease(site, dice));
    }
    restart_coordinator(site)?;
    pause(dice, 500, 1500);
    Ok(())
}

fn coordinator_killed_at_point(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let (point, most) = *dice.choose(&COORDINATOR_POINTS).unwrap_or(&COORDINATOR_POINTS[0]);
    let points = format!("{point}={}*off->return(kill)", dice.between(0, most));
    site.kill_coordinator();
    // It may die before it answers.
    site.start_coordinator(&points, &[])?;
    site.wait_for_coordinators_end(REACH_WITHIN);
    site.kill_coordinator();
    restart_coordinator(site)
}

fn coordinators_writes_fail(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let point = *dice.choose(&FAILING_POINTS).unwrap_or(&FAILING_POINTS[0]);
    // Not those of its start, which it may not survive.
    let points = format!("{point}={}*off->{}*return", dice.between(6, 20), dice.between(1, 6));
    site.kill_coordinator();
    site.start_coordinator(&points, &[])?;
    pause(dice, 1500, 3500);
    site.kill_coordinator();
    restart_coordinator(site)
}

fn coordinator_stopped(site: &Site, dice: &mut Dice) -> io::Result<()> {
    site.signal_coordinator(Signal::STOP);
    thread::sleep(about_a_lease(site, dice));
    site.signal_coordinator(Signal::CONT);
    pause(dice, 500, 1500);
    Ok(())
}

fn coordinator_ended(site: &Site, dice: &mut Dice) -> io::Result<()> {
    site.signal_coordinator(Signal::TERM);
    if !site.wait_for_coordinators_end(LEAVE_WITHIN) {
        return Err(io::Error::other(format!(
            "the coordinator does not end within {} s",
            LEAVE_WITHIN.as_secs()
        )));
    }
    site.kill_coordinator();
    restart_coordinator(site)?;
    pause(dice, 500, 1500);
    Ok(())
}

/// Nothing fits on the disk any more; somebody submits a text that is new.
fn disk_full(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let limited = site.disk.is_mounted().is_err();
    if limited {
        site.kill_coordinator();
        site.start_coordinator("", &[("HATCHERY_COORDINATOR__BLOB_BYTES_MAX", "1")])?;
    } else {
        site.disk.fill(0)?;
    }
    let from_ms = now_ms();
    let request = dice.uuid();
    let work =
        Work { own_text: true, crashes: false, ..Work::steady(&format!("full-{}", &request[..6]), 20, 10) };
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
    restart_coordinator(site)
}

/// A checkpoint of a job that has ended, its model's blob, and the names of the nodes that hold it.
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
            let files = one["manifest"]["files"].as_array()?.iter();
            let model = files
                .filter(|file| file["name"] == "model.safetensors")
                .find_map(|file| file["blob"].as_str())?;
            (nodes.len() > 1).then(|| (model.to_owned(), nodes))
        })
        .collect();
    dice.choose(&held).cloned()
}

/// A bit flips on the coordinator's disk; then a machine that has lost its own disk wants everything anew.
fn blob_damaged(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let Some((blob, nodes)) = settled_checkpoint(site, dice) else {
        pause(dice, 300, 600);
        return Ok(());
    };
    site.kill_coordinator();
    flip_bit(&blob_path(&site.coordinator_state().join("blobs"), &blob), dice)?;
    site.history.records().flipped.push(blob);
    restart_coordinator(site)?;
    let Some(member) = site.agents().iter().find(|member| nodes.contains(&member.name)) else {
        return Ok(());
    };
    member.kill();
    for trainer in member.trainers() {
        let _ended = kill_process(trainer, Signal::KILL);
    }
    member.lose_disk()?;
    site.start_agent(member, "")?;
    pause(dice, 1500, 2500);
    // Nodes look for what the coordinator lacks whenever a session begins.
    site.agents().iter().for_each(|member| member.proxy.reset_connections());
    pause(dice, 500, 1000);
    Ok(())
}

/// A bit flips on an agent's disk while the agent is away.
fn replica_damaged(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let Some((blob, nodes)) = settled_checkpoint(site, dice) else {
        pause(dice, 300, 600);
        return Ok(());
    };
    let holder =
        dice.choose(&nodes).and_then(|name| site.agents().iter().find(|member| member.name == *name));
    let Some(member) = holder else { return Ok(()) };
    member.kill();
    let path = blob_path(&member.home.join("agent").join("blobs"), &blob);
    if path.exists() {
        flip_bit(&path, dice)?;
        site.history.records().replicas_flipped += 1;
    }
    site.start_agent(member, "")?;
    pause(dice, 500, 1500);
    Ok(())
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

fn agent_killed(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let member = some_agent(site, dice)?;
    member.kill();
    if dice.one_in(2) {
        thread::sleep(about_a_lease(site, dice));
    }
    site.start_agent(member, "")?;
    pause(dice, 500, 1500);
    Ok(())
}

fn agent_killed_at_point(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let member = some_agent(site, dice)?;
    let (point, most) = *dice.choose(&AGENT_POINTS).unwrap_or(&AGENT_POINTS[0]);
    let points = format!("{point}={}*off->return(kill)", dice.between(0, most));
    member.kill();
    site.start_agent(member, &points)?;
    member.wait(REACH_WITHIN);
    member.kill();
    site.start_agent(member, "")
}

fn agent_stopped(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let member = some_agent(site, dice)?;
    member.signal(Signal::STOP);
    thread::sleep(about_a_lease(site, dice));
    member.signal(Signal::CONT);
    pause(dice, 500, 1500);
    Ok(())
}

fn agent_ended(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let member = some_agent(site, dice)?;
    member.signal(Signal::TERM);
    if !member.wait(LEAVE_WITHIN) {
        return Err(io::Error::other(format!(
            "{} does not end within {} s",
            member.name,
            LEAVE_WITHIN.as_secs()
        )));
    }
    member.kill();
    site.start_agent(member, "")?;
    pause(dice, 500, 1500);
    Ok(())
}

fn trainer_killed(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let trainers: Vec<_> = site.agents().iter().flat_map(Member::trainers).collect();
    if let Some(trainer) = dice.choose(&trainers) {
        // Before it is killed: the crash may be told at once.
        site.history.records().trainers_killed += 1;
        let _ended = kill_process(*trainer, Signal::KILL);
    }
    pause(dice, 500, 1000);
    Ok(())
}

fn trainer_stopped(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let trainers: Vec<_> = site.agents().iter().flat_map(Member::trainers).collect();
    let Some(trainer) = dice.choose(&trainers) else { return Ok(()) };
    let _ended = kill_process(*trainer, Signal::STOP);
    thread::sleep(about_a_lease(site, dice));
    let _ended = kill_process(*trainer, Signal::CONT);
    pause(dice, 200, 500);
    Ok(())
}

fn agent_network(site: &Site, dice: &mut Dice, mode: Mode) -> io::Result<()> {
    let member = some_agent(site, dice)?;
    member.proxy.set(mode);
    thread::sleep(about_a_lease(site, dice));
    member.proxy.set(Mode::Pass);
    // Otherwise connections that have lost bytes stay dead, until somebody notices.
    if dice.one_in(2) {
        member.proxy.reset_connections();
    }
    pause(dice, 300, 1500);
    Ok(())
}

fn all_cut_off(site: &Site, dice: &mut Dice) -> io::Result<()> {
    site.agents().iter().for_each(|member| member.proxy.set(Mode::Blackhole));
    thread::sleep(about_a_lease(site, dice));
    for member in site.agents() {
        member.proxy.set(Mode::Pass);
        member.proxy.reset_connections();
    }
    pause(dice, 1000, 2500);
    Ok(())
}

fn people_cut_off(site: &Site, dice: &mut Dice) -> io::Result<()> {
    let modes = [Mode::Blackhole, Mode::DeafClient, Mode::MuteClient, Mode::Reset, Mode::Bandwidth(20 << 10)];
    for _ in 0..3 {
        site.people.set(*dice.choose(&modes).unwrap_or(&Mode::Reset));
        pause(dice, 300, 1200);
        site.people.set(Mode::Pass);
        site.people.reset_connections();
        pause(dice, 100, 400);
    }
    Ok(())
}
