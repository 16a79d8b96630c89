//! What bad networks do.
#![allow(clippy::unnecessary_wraps, reason = "all faults have one form, and some cannot fail")]

use std::{io, thread};

use super::{about_a_lease, pause, some_agent};
use crate::chaos::{dice::Dice, proxy::Mode, site::Site};

pub(super) fn agent_network(site: &Site, dice: &mut Dice, mode: Mode) -> io::Result<bool> {
    let member = some_agent(site, dice)?;
    member.proxy.set(mode);
    thread::sleep(about_a_lease(site, dice));
    member.proxy.set(Mode::Pass);
    // Otherwise connections that have lost bytes stay dead, until somebody notices.
    if dice.one_in(2) {
        member.proxy.reset_connections();
    }
    pause(dice, 300, 1500);
    Ok(true)
}

pub(super) fn all_cut_off(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    site.agents().iter().for_each(|member| member.proxy.set(Mode::Blackhole));
    thread::sleep(about_a_lease(site, dice));
    for member in site.agents() {
        member.proxy.set(Mode::Pass);
        member.proxy.reset_connections();
    }
    pause(dice, 1000, 2500);
    Ok(true)
}

pub(super) fn people_cut_off(site: &Site, dice: &mut Dice) -> io::Result<bool> {
    let modes = [Mode::Blackhole, Mode::DeafClient, Mode::MuteClient, Mode::Reset, Mode::Bandwidth(20 << 10)];
    for _ in 0..3 {
        site.people.set(*dice.choose(&modes).unwrap_or(&Mode::Reset));
        pause(dice, 300, 1200);
        site.people.set(Mode::Pass);
        site.people.reset_connections();
        pause(dice, 100, 400);
    }
    Ok(true)
}
