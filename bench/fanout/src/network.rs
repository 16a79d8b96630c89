//! Machines made of network namespaces: each with one link of its own to a switch, up by HTB and down by TBF.
//!
//! All namespaces have one prefix. They are removed with the network; what an earlier run has left is removed before the
//! first is made.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::command::{output, words};

const PREFIX: &str = "hatchery-bench-";
/// Most machines on one switch.
const MACHINES_MAX: usize = 200;
/// A TBF or HTB bucket takes at least one packet as large as a kernel hands on at once.
const BURST_BYTES: u64 = 64 << 10;
/// How long a packet waits at most in front of a downlink.
const DOWN_QUEUE_MS: u64 = 50;

/// A link's nominal speed in both directions; none: as fast as the machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Link(pub(super) Option<f64>);

impl Link {
    /// Mbit/s each way.
    pub(super) fn mbit(rate: f64) -> Self {
        Self(Some(rate))
    }
}

/// Machines on a switch; the first is the source. They are gone when this is dropped.
pub(super) struct Network {
    links: Vec<Link>,
    /// The namespace of the switch.
    switch: String,
    /// The first half of all addresses.
    subnet: [u8; 2],
    /// Held so that there is only one network of this kind at a time.
    _alone: File,
}

impl Network {
    /// Makes one machine for each link.
    pub(super) fn build(links: &[Link]) -> Result<Self> {
        ensure!(links.len() <= MACHINES_MAX, "more than {MACHINES_MAX} machines");
        let alone = lock()?;
        remove_all();
        // From here on it is removed also if something fails.
        let switch = format!("{PREFIX}switch");
        let network = Self { links: links.to_vec(), switch, subnet: [10, 77], _alone: alone };
        let switch = &network.switch;
        add_namespace(switch)?;
        words(&format!("ip -n {switch} link add name switch type bridge"))?;
        words(&format!("ip -n {switch} link set switch up"))?;
        for (machine, link) in links.iter().enumerate() {
            network.plug_in(machine, *link)?;
        }
        Ok(network)
    }

    fn plug_in(&self, machine: usize, link: Link) -> Result<()> {
        let (inside, port, switch) = (self.namespace(machine), port(machine), &self.switch);
        add_namespace(&inside)?;
        words(&format!("ip link add name uplink netns {inside} type veth peer name {port} netns {switch}"))?;
        words(&format!("ip -n {inside} address add {}/16 dev uplink", self.address(machine)))?;
        words(&format!("ip -n {inside} link set uplink up"))?;
        words(&format!("ip -n {switch} link set {port} master switch up"))?;
        let Link(Some(mbit)) = link else { return Ok(()) };
        let bits = (mbit * 1e6) as u64;
        words(&format!("tc -n {inside} qdisc add dev uplink root handle 1: htb default 1"))?;
        words(&format!(
            "tc -n {inside} class add dev uplink parent 1: classid 1:1 htb rate {bits} burst {BURST_BYTES} \
             cburst {BURST_BYTES} quantum {BURST_BYTES}"
        ))?;
        words(&format!(
            "tc -n {switch} qdisc add dev {port} root tbf rate {bits} burst {BURST_BYTES} latency {DOWN_QUEUE_MS}ms"
        ))?;
        Ok(())
    }

    /// Where a machine is reached by the others.
    pub(super) fn address(&self, machine: usize) -> Ipv4Addr {
        let [first, second] = self.subnet;
        Ipv4Addr::new(first, second, 0, machine as u8 + 1)
    }

    /// A program on a machine.
    pub(super) fn command(&self, machine: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(machine)]).arg(program);
        command
    }

    /// Does something on a machine, in this process.
    pub(super) fn on<T: Send>(&self, machine: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
        enter(&self.namespace(machine), work)
    }

    /// The bytes that have left a machine so far.
    pub(super) fn sent_bytes(&self, machine: usize) -> Result<u64> {
        let table = self.on(machine, || fs::read_to_string("/proc/thread-self/net/dev"))??;
        sent_bytes(&table, "uplink").context("a machine has lost its uplink")
    }

    /// Pulls a machine's plug, or puts it in again.
    pub(super) fn set_plugged(&self, machine: usize, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        words(&format!("ip -n {} link set {} {state}", self.switch, port(machine))).map(drop)
    }

    fn namespace(&self, machine: usize) -> String {
        self.switch.replace("switch", &machine.to_string())
    }

    /// The links, the source's first.
    pub(super) fn links(&self) -> &[Link] {
        &self.links
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove_all();
    }
}

fn port(machine: usize) -> String {
    format!("port{machine}")
}

fn add_namespace(name: &str) -> Result<()> {
    words(&format!("ip netns add {name}")).context("network namespaces take root, and Linux's `ip`")?;
    words(&format!("ip -n {name} link set lo up")).map(drop)
}

/// Runs `work` in a thread that is in a namespace.
fn enter<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(format!("/run/netns/{name}")).with_context(|| format!("there is no {name}"))?;
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            use std::os::fd::AsFd as _;
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("cannot enter {name}"))?;
            Ok(work())
        });
        inside.join().unwrap_or_else(|_| bail!("what was done in {name} has panicked"))
    })
}

/// One network at a time: a second would remove the first.
fn lock() -> Result<File> {
    let path = std::env::temp_dir().join("hatchery-bench.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.try_lock().with_context(|| format!("another run is under way; it holds {}", path.display()))?;
    Ok(file)
}

/// Removes every namespace of ours, with the processes in it.
fn remove_all() {
    let Ok(list) = words("ip netns list") else { return };
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        if !name.starts_with(PREFIX) {
            continue;
        }
        let pids = output(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
        for pid in pids.lines().filter_map(|line| line.trim().parse().ok()).filter_map(Pid::from_raw) {
            // One that has ended meanwhile is what is wanted.
            kill_process(pid, Signal::KILL).ok();
        }
        if let Err(error) = words(&format!("ip netns delete {name}")) {
            eprintln!("{name} is left: {error:#}");
        }
    }
}

/// The bytes sent over a device, from the table in `/proc/net/dev`.
fn sent_bytes(table: &str, device: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'))?;
    line.split_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_sent_are_the_ninth_figure_of_the_device() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop\n    \
             lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0\n\
             uplink: 5000      40    0    0    0     0          0         0   987654     321    0    0    0     0\n";
        assert_eq!(sent_bytes(table, "uplink"), Some(987_654));
        assert_eq!(sent_bytes(table, "lo"), Some(100));
        assert_eq!(sent_bytes(table, "link"), None);
    }
}
