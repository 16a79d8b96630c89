//! The least BitTorrent tracker: whoever announces hears of all others.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use super::bencode::Value;

/// How long a client may take to ask.
const ASK_WAIT: Duration = Duration::from_secs(5);
/// Clients come back after so many seconds.
const INTERVAL_SECS: u64 = 1;

/// Runs in a thread until it is dropped.
pub(super) struct Tracker {
    address: SocketAddr,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tracker {
    /// Serves whoever connects to `listener`.
    pub(super) fn start(listener: TcpListener) -> Result<Self> {
        let (address, ends) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        listener.set_nonblocking(true)?;
        let end = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let mut peers = Vec::new();
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that goes wrong asks again.
                    Ok((stream, _)) => drop(answer(stream, &mut peers)),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Ok(Self { address, ends, thread: Some(thread) })
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say at its end.
            drop(thread.join());
        }
    }
}

fn answer(stream: TcpStream, peers: &mut Vec<SocketAddrV4>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ASK_WAIT))?;
    let SocketAddr::V4(from) = stream.peer_addr()? else { return Ok(()) };
    let mut reader = BufReader::new(&stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    // The rest of the request, up to the empty line, says nothing of use.
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let peer = SocketAddrV4::new(*from.ip(), port(&request).context("a request without a port")?);
    let body = peers_for(peer, peers);
    if !peers.contains(&peer) {
        peers.push(peer);
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    (&stream).write_all(&[head.as_bytes(), &body].concat())?;
    Ok(())
}

/// The port that an announcement names.
fn port(request: &str) -> Option<u16> {
    let (_, query) = request.split_whitespace().nth(1)?.split_once('?')?;
    query.split('&').find_map(|pair| pair.strip_prefix("port="))?.parse().ok()
}

/// All others, six bytes for each.
fn peers_for(peer: SocketAddrV4, peers: &[SocketAddrV4]) -> Vec<u8> {
    let others = peers.iter().filter(|other| **other != peer);
    let compact =
        others.flat_map(|other| [&Ipv4Addr::octets(other.ip())[..], &other.port().to_be_bytes()].concat());
    let answer = [
        ("interval", Value::Number(INTERVAL_SECS)),
        ("min interval", Value::Number(INTERVAL_SECS)),
        ("peers", Value::Bytes(compact.collect())),
    ];
    Value::table(answer).to_bytes()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn who_announces_hears_of_the_others() {
        let tracker = Tracker::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let announce = |port: u16| {
            let mut stream = TcpStream::connect(tracker.address).unwrap();
            write!(stream, "GET /announce?info_hash=%00&port={port}&left=1 HTTP/1.1\r\nHost: t\r\n\r\n")
                .unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer.split_off(answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4)
        };
        assert_eq!(announce(1), b"d8:intervali1e12:min intervali1e5:peers0:e");
        assert_eq!(announce(258), b"d8:intervali1e12:min intervali1e5:peers6:\x7f\0\0\x01\0\x01e");
        assert_eq!(announce(1), b"d8:intervali1e12:min intervali1e5:peers6:\x7f\0\0\x01\x01\x02e");
    }
}
