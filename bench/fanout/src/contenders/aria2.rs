//! BitTorrent by aria2: a seeder and a tracker at the source, a client on each receiver.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hatchery_test_support::{Daemon, Interrupt};
use tempfile::TempDir;

use super::tracker::Tracker;
use super::{payload, torrent};
use crate::network::Network;
use crate::transfer::{Transfer, moment, now};

const TRACKER_PORT: u16 = 6969;
const PEER_PORT: u16 = 6881;
/// What a client runs when it has everything, verified; aria2 hands it arguments that it does not need.
const NOTE: &str = "#!/bin/sh\ndate +%s%N > \"$HATCHERY_BENCH_NOTE.new\" && mv \"$HATCHERY_BENCH_NOTE.new\" \"$HATCHERY_BENCH_NOTE\"\n";

pub(in super::super) struct Aria2<'a> {
    network: &'a Network,
    folder: TempDir,
    seeder: Daemon,
    clients: Vec<Daemon>,
    bytes: u64,
    _tracker: Tracker,
}

impl<'a> Aria2<'a> {
    /// Starts tracker and seeder.
    pub(in super::super) fn start(
        network: &'a Network,
        interrupt: &Interrupt,
        megabytes: u64,
        seed: u64,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hatchery-bench-").tempdir()?;
        let content = payload::write(&folder.path().join("0"), megabytes, seed)?;
        let listener = network.on(0, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, TRACKER_PORT)))??;
        let tracker = Tracker::start(listener)?;
        let announce = format!("http://{}:{}/announce", network.address(0), tracker.port());
        fs::write(folder.path().join("torrent"), torrent::describe(&content, &announce))?;
        let note = folder.path().join("note.sh");
        fs::write(&note, NOTE)?;
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&note, executable)?;
        let mut seeder = client(network, folder.path(), 0)?;
        // It notes the moment at which it has checked its file, and serves from then on.
        while noted(folder.path(), 0).is_none() {
            seeder.check()?;
            interrupt.check()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            network,
            folder,
            seeder,
            clients: Vec::new(),
            bytes: content.len() as u64,
            _tracker: tracker,
        })
    }
}

/// aria2 on a machine.
fn client(network: &Network, folder: &Path, machine: usize) -> Result<Daemon> {
    let mut command = network.command(machine, "aria2c");
    command.arg("--dir").arg(folder.join(machine.to_string()));
    command.arg("--on-bt-download-complete").arg(folder.join("note.sh"));
    command.env("HATCHERY_BENCH_NOTE", folder.join(format!("{machine}.done")));
    command.args(["--no-conf", "--seed-ratio=0.0", "--check-integrity=true", "--file-allocation=none"]);
    // Peers come from the tracker alone, and from one another.
    command.args([
        "--enable-dht=false",
        "--enable-dht6=false",
        "--bt-enable-lpd=false",
        "--enable-peer-exchange=true",
    ]);
    command.args([
        "--bt-tracker-interval=1",
        "--summary-interval=0",
        "--console-log-level=warn",
        "--disable-ipv6=true",
    ]);
    command.arg(format!("--listen-port={PEER_PORT}")).arg(folder.join("torrent"));
    Ok(Daemon::start("aria2", &mut command, folder.join(format!("{machine}.log")))?.killed_at_end())
}

/// When a client had everything.
fn noted(folder: &Path, machine: usize) -> Option<f64> {
    moment(&fs::read_to_string(folder.join(format!("{machine}.done"))).ok()?)
}

impl Transfer for Aria2<'_> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn begin(&mut self) -> Result<f64> {
        let begun = now();
        for machine in 1..self.network.links().len() {
            self.clients
                .push(client(self.network, self.folder.path(), machine).context("a client of aria2")?);
        }
        Ok(begun)
    }

    fn finished(&mut self) -> Result<Vec<Option<f64>>> {
        for client in &mut self.clients {
            client.check()?;
        }
        Ok((1..=self.clients.len()).map(|machine| noted(self.folder.path(), machine)).collect())
    }

    fn processes(&self) -> Vec<u32> {
        let clients = self.clients.iter().map(Daemon::pid);
        std::iter::once(self.seeder.pid()).chain(clients).collect()
    }
}
