//! Killed, stopped and ended: coordinator, agents, trainers.
#![allow(clippy::unnecessary_wraps, reason = "all faults have one form, and some cannot fail")]

use std::{io, thread, time::Duration};

use rustix::process::{Signal, kill_process};

use super::{about_a_lease, pause, restart_coordinator, some_agent};
use crate::chaos::{dice::Dice, member::Member, site::Site};

/// Points at which a coordinator is killed, each with the most times that it is passed before.
const COORDINATOR_POINTS: [(&str, u64); 8] = [
    ("store::statement", 60),
    ("durable::before_sync", 12),
    ("durable::before_rename", 12),
    ("durable::before_folder_sync", 12),
    ("event_loop::before_commit", 10),
    ("event_loop::after_commit", 10),
    ("event_loop::before_reply", 4),
    ("transfer::before_answer", 12),
];
/// Points at which an agent is killed.
const AGENT_POINTS: [(&str, u64); 5] = [
    ("durable::before_sync", 8),
    ("durable::before_rename", 8),
    ("durable::before_folder_sync", 8),
    ("deliver::before_commit", 3),
    ("deliver::after_commit", 3),
];
/// Points at which a write fails.
const FAILING_POINTS: [&str; 3] =
    ["durable::before_sync", "durable::before_rename", "durable::before_folder_sync"];
/// How long a process is given to reach the point at which it is killed.
const REACH_WITHIN: Duration = Duration::from_secs(5);
/// How long a clean end may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(30);

pub(super) fn coordinator_killed(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    site.kill_coordinator();
    if dice.one_in(2) {
        thread::sleep(about_a_lease(site, dice));
    }
    restart_coordinator(site)?;
    pause(dice, 500, 1500);
    Ok(true)
}

pub(super) fn coordinator_killed_at_point(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let (point, most) = *dice.choose(&COORDINATOR_POINTS).unwrap_or(&COORDINATOR_POINTS[0]);
    let points = format!("{point}={}*off->return(kill)", dice.between(0, most));
    site.kill_coordinator();
    // It may die before it answers.
    site.start_coordinator(&points, &[])?;
    let reached = site.wait_for_coordinators_end(REACH_WITHIN);
    site.kill_coordinator();
    restart_coordinator(site)?;
    Ok(reached)
}

pub(super) fn coordinators_writes_fail(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let point = *dice.choose(&FAILING_POINTS).unwrap_or(&FAILING_POINTS[0]);
    // Not those of its start, which it may not survive.
    let points = format!("{point}={}*off->{}*return", dice.between(6, 20), dice.between(1, 6));
    site.kill_coordinator();
    site.start_coordinator(&points, &[])?;
    pause(dice, 1500, 3500);
    site.kill_coordinator();
    restart_coordinator(site)?;
    Ok(true)
}

pub(super) fn coordinator_stopped(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    site.signal_coordinator(Signal::STOP);
    thread::sleep(about_a_lease(site, dice));
    site.signal_coordinator(Signal::CONT);
    pause(dice, 500, 1500);
    Ok(true)
}

pub(super) fn coordinator_ended(site: &Site, dice: &mut Dice) -> io::Result<bool> {
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
    Ok(true)
}

pub(super) fn agent_killed(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let member = some_agent(site, dice)?;
    member.kill();
    if dice.one_in(2) {
        thread::sleep(about_a_lease(site, dice));
    }
    site.start_agent(member, "")?;
    pause(dice, 500, 1500);
    Ok(true)
}

pub(super) fn agent_killed_at_point(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let member = some_agent(site, dice)?;
    let (point, most) = *dice.choose(&AGENT_POINTS).unwrap_or(&AGENT_POINTS[0]);
    let points = format!("{point}={}*off->return(kill)", dice.between(0, most));
    member.kill();
    site.start_agent(member, &points)?;
    let reached = member.wait(REACH_WITHIN);
    member.kill();
    site.start_agent(member, "")?;
    Ok(reached)
}

pub(super) fn agent_stopped(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let member = some_agent(site, dice)?;
    member.signal(Signal::STOP);
    thread::sleep(about_a_lease(site, dice));
    member.signal(Signal::CONT);
    pause(dice, 500, 1500);
    Ok(true)
}

pub(super) fn agent_ended(site: &Site, dice: &mut Dice) -> io::Result<bool> {
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
    Ok(true)
}

pub(super) fn trainer_killed(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let trainers: Vec<_> = site.agents().iter().flat_map(Member::trainers).collect();
    let Some(trainer) = dice.choose(&trainers) else {
        pause(dice, 100, 300);
        return Ok(false);
    };
    // Before it is killed: the crash may be told at once.
    site.history.records().trainers_killed += 1;
    let _ended = kill_process(*trainer, Signal::KILL);
    pause(dice, 500, 1000);
    Ok(true)
}

pub(super) fn trainer_stopped(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let trainers: Vec<_> = site.agents().iter().flat_map(Member::trainers).collect();
    let Some(trainer) = dice.choose(&trainers) else {
        pause(dice, 100, 300);
        return Ok(false);
    };
    let _ended = kill_process(*trainer, Signal::STOP);
    thread::sleep(about_a_lease(site, dice));
    let _ended = kill_process(*trainer, Signal::CONT);
    pause(dice, 200, 500);
    Ok(true)
}
