//! rsync: a daemon at the source, a client on each receiver.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hatchery_test_support::{Daemon, GLANCE, Interrupt};
use tempfile::TempDir;

use super::payload;
use crate::network::Network;
use crate::transfer::{Transfer, now};

const PORT: u16 = 8730;
/// How long the daemon may take to listen.
const READY_WAIT: Duration = Duration::from_secs(10);

pub(in super::super) struct Rsync<'a> {
    network: &'a Network,
    folder: TempDir,
    daemon: Daemon,
    bytes: u64,
    clients: Vec<Client>,
}

struct Client {
    child: Child,
    finished: Option<f64>,
}

impl<'a> Rsync<'a> {
    /// Starts the daemon with a file to serve.
    pub(in super::super) fn start(
        network: &'a Network,
        interrupt: &Interrupt,
        megabytes: u64,
        seed: u64,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hatchery-bench-").tempdir()?;
        let source = folder.path().join("source");
        let bytes = payload::write(&source, megabytes, seed)?.len() as u64;
        let config = folder.path().join("rsyncd.conf");
        let text = format!(
            "port = {PORT}\nuse chroot = no\nuid = root\ngid = root\n[m]\npath = {}\nread only = yes\n",
            source.display()
        );
        fs::write(&config, text)?;
        let mut command = network.command(0, "rsync");
        command.args(["--daemon", "--no-detach", "--config"]).arg(&config);
        let mut daemon =
            Daemon::start("rsync daemon", &mut command, folder.path().join("log"))?.killed_at_end();
        let deadline = Instant::now() + READY_WAIT;
        while network.on(0, || TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], PORT))))?.is_err() {
            daemon.check()?;
            interrupt.check()?;
            ensure!(Instant::now() < deadline, "the rsync daemon does not listen");
            std::thread::sleep(GLANCE);
        }
        Ok(Self { network, folder, daemon, bytes, clients: Vec::new() })
    }
}

impl Transfer for Rsync<'_> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn begin(&mut self) -> Result<f64> {
        let begun = now();
        let url = format!("rsync://{}:{PORT}/m/{}", self.network.address(0), payload::FILE);
        for machine in 1..self.network.links().len() {
            let to = self.folder.path().join(format!("{machine}"));
            let mut command = self.network.command(machine, "rsync");
            command.arg("--whole-file").arg(&url).arg(&to).stdin(Stdio::null()).stderr(Stdio::null());
            let child = command.spawn().context("cannot start rsync")?;
            self.clients.push(Client { child, finished: None });
        }
        Ok(begun)
    }

    fn finished(&mut self) -> Result<Vec<Option<f64>>> {
        for client in self.clients.iter_mut().filter(|client| client.finished.is_none()) {
            if let Some(status) = client.child.try_wait()? {
                if !status.success() {
                    bail!("rsync failed ({status})");
                }
                client.finished = Some(now());
            }
        }
        Ok(self.clients.iter().map(|client| client.finished).collect())
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.daemon.pid()]
    }
}

impl Drop for Rsync<'_> {
    fn drop(&mut self) {
        for client in &mut self.clients {
            // One that has ended cannot be killed, and needs not to be.
            client.child.kill().ok();
            client.child.wait().ok();
        }
    }
}
