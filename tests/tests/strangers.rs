//! What somebody who has no certificate can do to a coordinator that is at work: next to nothing.
#![allow(clippy::unwrap_used, reason = "in a test, a value that is not there is a failure")]

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use hatchery_common::{
    open_files,
    tls::{JoinString, client_config_pinned, install_provider},
};
use hatchery_tests::{Fleet, PATIENCE, corpus};
use http::Request;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The attacker's address; honest ones come from 127.0.0.1.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Where the coordinator is, and what a stranger needs to speak TLS with it.
struct Target {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Target {
    fn of(fleet: &Fleet) -> Arc<Self> {
        install_provider();
        open_files::raise_limit();
        let join: JoinString = fleet.token().parse().unwrap();
        let address = fleet.address().parse().unwrap();
        Arc::new(Self { address, config: client_config_pinned(join.authority).unwrap() })
    }

    async fn dial(&self, from: Ipv4Addr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from.into(), 0))?;
        socket.connect(self.address).await
    }

    async fn shake_hands(&self, from: Ipv4Addr) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("coordinator.hatchery").unwrap();
        TlsConnector::from(Arc::clone(&self.config)).connect(name, self.dial(from).await?).await
    }

    /// Opens as many calls of `Join` as it can, each of which announces a message of 4 MiB and sends all of it but a byte.
    /// Gives the bytes that the coordinator took, once it has ended the connection.
    async fn swamp(&self) -> usize {
        const STREAMS: usize = 240;
        const ANNOUNCED: u32 = 4 << 20;
        let stream = self.shake_hands(ELSEWHERE).await.expect("a stranger may shake hands");
        let mut client = h2::client::Builder::new();
        client.initial_max_send_streams(STREAMS);
        // Those that find no place among the strangers are let go before they can say anything.
        let Ok((mut calls, connection)) = client.handshake::<_, Bytes>(stream).await else { return 0 };
        let sent = Arc::<AtomicUsize>::default();
        let connection = tokio::spawn(connection);
        let mut sending = JoinSet::new();
        for _ in 0..STREAMS {
            let request = Request::post("https://coordinator.hatchery/hatchery.v1.Agents/Join")
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            let Ok((answer, mut body)) = calls.send_request(request.body(()).unwrap(), false) else { break };
            let sent = Arc::clone(&sent);
            sending.spawn(async move {
                let _answer = answer;
                let mut rest = ANNOUNCED as usize - 1;
                let announced: Vec<u8> = [&[0][..], &ANNOUNCED.to_be_bytes()].concat();
                if body.send_data(announced.into(), false).is_err() {
                    return;
                }
                while rest > 0 {
                    body.reserve_capacity(rest.min(64 << 10));
                    let Some(Ok(room)) = std::future::poll_fn(|context| body.poll_capacity(context)).await
                    else {
                        return;
                    };
                    let part = room.min(rest);
                    if body.send_data(Bytes::from(vec![0; part]), false).is_err() {
                        return;
                    }
                    rest -= part;
                    sent.fetch_add(part, Ordering::Relaxed);
                }
                std::future::pending::<()>().await;
            });
        }
        let _ended = connection.await;
        sent.load(Ordering::Relaxed)
    }

    /// Dials, says nothing, and dials again as soon as it is thrown out.
    async fn stay_silent(&self, dialled: &AtomicUsize, until: &AtomicBool) {
        while !until.load(Ordering::Relaxed) {
            let Ok(mut stream) = self.dial(ELSEWHERE).await else { continue };
            dialled.fetch_add(1, Ordering::Relaxed);
            let _thrown_out = stream.read(&mut [0; 1]).await;
        }
    }
}

/// The memory of a process, in KiB: now, and at its highest since [`forget_peak`].
fn memory_kib(pid: u32, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    value.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn half_sent_messages_of_strangers_cost_little_memory() {
    const CONNECTIONS: usize = 20;
    const GROWTH_MAX_KIB: u64 = 32 << 10;
    let fleet = Fleet::start(15);
    let target = Target::of(&fleet);
    let pid = fleet.pid("coordinator").unwrap();
    forget_peak(pid);
    let before = memory_kib(pid, "VmRSS:");
    let began = Instant::now();
    let sent = block_on(async {
        let mut attack = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let target = Arc::clone(&target);
            attack.spawn(async move { target.swamp().await });
        }
        timeout(PATIENCE, attack.join_all()).await.expect("the coordinator ends every stranger's connection")
    });
    assert!(sent.iter().filter(|sent| **sent > 0).count() >= CONNECTIONS / 2, "hardly an attack: {sent:?}");
    let (peak, after) = (memory_kib(pid, "VmHWM:"), memory_kib(pid, "VmRSS:"));
    println!("{before} KiB before, {peak} at most, {after} after {} ms", began.elapsed().as_millis());
    assert!(peak.saturating_sub(before) < GROWTH_MAX_KIB, "{before} KiB grew to {peak}");
    assert!(after.saturating_sub(before) < GROWTH_MAX_KIB / 2, "{before} KiB before, {after} after");
    assert_eq!(fleet.run(&["nodes"]).code, 0);
}

#[test]
fn silent_connections_of_one_address_keep_nobody_else_out() {
    const SILENT: usize = 1500;
    const HONEST: usize = 100;
    let fleet = Fleet::with_agents(15, &["ada"]);
    let target = Target::of(&fleet);
    let data = corpus(fleet.scratch(), 3);
    let job = fleet.submit(&data, 1_000_000, 1000, &[]);
    fleet.watch(&job, "running", |job| job["phase"] == "running");
    let slowest = block_on(async {
        let (dialled, until) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let mut attack = JoinSet::new();
        for _ in 0..SILENT {
            let (target, dialled, until) = (Arc::clone(&target), Arc::clone(&dialled), Arc::clone(&until));
            attack.spawn(async move { target.stay_silent(&dialled, &until).await });
        }
        // All of them stand, and some have been thrown out and are back.
        let all_stand = async {
            while dialled.load(Ordering::Relaxed) < SILENT + SILENT / 10 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, all_stand).await.unwrap();
        let mut slowest = Duration::ZERO;
        for _ in 0..HONEST {
            let began = Instant::now();
            timeout(PATIENCE, target.shake_hands(Ipv4Addr::LOCALHOST)).await.unwrap().unwrap();
            slowest = slowest.max(began.elapsed());
        }
        assert_eq!(fleet.run(&["nodes"]).code, 0);
        until.store(true, Ordering::Relaxed);
        slowest
    });
    println!("the slowest of {HONEST} honest dials took {} ms", slowest.as_millis());
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let job = fleet.json(&["job", &job]);
    assert_eq!((&job["phase"], &job["epoch"]), (&"running".into(), &1.into()), "no lease is lost: {job}");
}
