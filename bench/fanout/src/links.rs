//! What a link carries in truth: payload of one TCP stream, which is less than its nominal speed by headers.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::floor::Rates;
use super::network::{Link, Network};

/// For so long the stream runs before it is measured, and then while it is.
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(2);
const PORT: u16 = 5201;
/// What a link without a limit counts as, in payload bytes per second: its time is the processor's.
const UNLIMITED: f64 = f64::INFINITY;

/// Bytes of payload per second that one TCP stream carries from machine 0 to machine 1.
pub(super) fn goodput(network: &Network) -> Result<f64> {
    let listener = network.on(1, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
    let address = (network.address(1), PORT);
    let stream = network.on(0, || TcpStream::connect(address))??;
    let (incoming, _) = listener.accept()?;
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(incoming));
        let block = vec![0; 256 << 10];
        let mut outgoing = &stream;
        // It ends when the receiver has seen enough, and hangs up.
        while outgoing.write_all(&block).is_ok() {}
        receiver.join().unwrap_or_else(|_| bail!("the receiver has panicked"))
    })
}

fn receive(mut stream: TcpStream) -> Result<f64> {
    let mut block = vec![0; 256 << 10];
    let mut take = |until: Duration| -> Result<f64> {
        let (started, mut bytes) = (Instant::now(), 0);
        while started.elapsed() < until {
            bytes += match stream.read(&mut block).context("the stream breaks off")? {
                0 => bail!("the stream ends"),
                read => read,
            };
        }
        Ok(bytes as f64 / started.elapsed().as_secs_f64())
    };
    take(WARM_UP)?;
    take(MEASURED)
}

/// What links carry, if an ordinary one of `nominal_mbit` carries `goodput`.
pub(super) fn rates(links: &[Link], nominal_mbit: f64, goodput: f64) -> Vec<Rates> {
    let rate = |link: &Link| link.0.map_or(UNLIMITED, |mbit| goodput * mbit / nominal_mbit);
    links.iter().map(rate).map(|rate| Rates { up: rate, down: rate }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slower_links_carry_their_part() {
        let links = [Link::mbit(60.0), Link::mbit(15.0), Link(None)];
        let rates = rates(&links, 60.0, 7e6);
        assert!((rates[0].up - 7e6).abs() < 1e-3 && (rates[1].down - 1.75e6).abs() < 1e-3);
        assert!(rates[2].up.is_infinite());
    }
}
