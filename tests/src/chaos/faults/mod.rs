//! What is done to the fleet. Two hands do it at the same time, one to processes and disks, one to the network; each goes
//! through its whole list in an order that the seed gives, then through it again.

mod disks;
mod network;
mod processes;

use std::{fs, io, thread, time::Duration};

use rustix::process::{Signal, kill_process};

pub use disks::flip_bit;

use super::{dice::Dice, member::Member, proxy::Mode, site::Site};

/// Something that is done to the fleet.
pub struct Fault {
    /// What it is called.
    pub name: &'static str,
    /// Does it, and says whether there was anything to do it to.
    act: fn(&Site, &mut Dice) -> io::Result<bool>,
}

/// What is done to processes and disks.
pub const TO_PROCESSES: [Fault; 14] = [
    Fault { name: "coordinator killed", act: processes::coordinator_killed },
    Fault { name: "coordinator killed at a point", act: processes::coordinator_killed_at_point },
    Fault { name: "coordinator's writes fail", act: processes::coordinators_writes_fail },
    Fault { name: "coordinator stopped", act: processes::coordinator_stopped },
    Fault { name: "coordinator ended", act: processes::coordinator_ended },
    Fault { name: "coordinator's disk full", act: disks::disk_full },
    Fault { name: "coordinator's blob damaged", act: disks::blob_damaged },
    Fault { name: "agent killed", act: processes::agent_killed },
    Fault { name: "agent killed at a point", act: processes::agent_killed_at_point },
    Fault { name: "agent stopped", act: processes::agent_stopped },
    Fault { name: "agent ended", act: processes::agent_ended },
    Fault { name: "agent's replica damaged", act: disks::replica_damaged },
    Fault { name: "trainer killed", act: processes::trainer_killed },
    Fault { name: "trainer stopped", act: processes::trainer_stopped },
];

/// What is done to the network.
pub const TO_THE_NETWORK: [Fault; 8] = [
    Fault {
        name: "agent in a black hole",
        act: |site, dice| network::agent_network(site, dice, Mode::Blackhole),
    },
    Fault { name: "agent deaf", act: |site, dice| network::agent_network(site, dice, Mode::DeafClient) },
    Fault { name: "agent mute", act: |site, dice| network::agent_network(site, dice, Mode::MuteClient) },
    Fault {
        name: "agent's network slow",
        act: |site, dice| {
            let delay = Mode::Delay(Duration::from_millis(dice.between(20, 300)));
            network::agent_network(site, dice, delay)
        },
    },
    Fault {
        name: "agent's network narrow",
        act: |site, dice| {
            let narrow = Mode::Bandwidth(dice.between(10, 200) << 10);
            network::agent_network(site, dice, narrow)
        },
    },
    Fault {
        name: "agent's connections reset",
        act: |site, dice| network::agent_network(site, dice, Mode::Reset),
    },
    Fault { name: "all agents cut off", act: network::all_cut_off },
    Fault { name: "people cut off", act: network::people_cut_off },
];

impl Fault {
    /// Does it, waits for as long as it is to last, and undoes it.
    pub fn strike(&self, site: &Site, dice: &mut Dice) -> io::Result<()> {
        if (self.act)(site, dice)? {
            site.history.fault(self.name);
        }
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
