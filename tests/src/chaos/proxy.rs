//! A TCP proxy that does to its connections what bad networks do. What it does can be changed while it runs.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::net::sockopt::set_socket_linger;

/// Most connections at once; further ones are closed as soon as they come.
const CONNECTIONS_MAX: usize = 128;
/// How much is read and passed on at once.
const CHUNK_BYTES: usize = 16 << 10;
/// How long a read waits before it looks whether the connection is to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the other side may take to answer, or to take a chunk.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);

/// What happens to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are passed on.
    Pass,
    /// They are passed on after this time.
    Delay(Duration),
    /// At most so many a second are passed on, each way.
    Bandwidth(u64),
    /// They are taken and go nowhere, in both directions; so does whoever connects now.
    Blackhole,
    /// What comes from the server goes nowhere, what goes to it is passed on.
    DeafClient,
    /// What goes to the server goes nowhere, what comes from it is passed on.
    MuteClient,
    /// Connections are broken off, those that are there and those that come.
    Reset,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl Mode {
    fn swallows(self, direction: Direction) -> bool {
        match self {
            Self::Blackhole => true,
            Self::DeafClient => direction == Direction::ToClient,
            Self::MuteClient => direction == Direction::ToServer,
            Self::Pass | Self::Delay(_) | Self::Bandwidth(_) | Self::Reset => false,
        }
    }
}

/// The proxy; it ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    mode: Mutex<Mode>,
    connections: Mutex<Vec<Arc<Connection>>>,
    passed_bytes: AtomicU64,
    over: AtomicBool,
}

/// One connection of a client, and the proxy's own to the server.
struct Connection {
    client: TcpStream,
    server: Option<TcpStream>,
    /// Bytes of it were swallowed, so that nothing after them would make sense: it stays dead, as does one whose other
    /// side has lost its power.
    dead: AtomicBool,
    /// One direction has come to its orderly end.
    half_over: AtomicBool,
    over: AtomicBool,
}

impl Proxy {
    /// Listens on a free port of this machine, before the server at `server`.
    pub fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server,
            mode: Mutex::new(Mode::Pass),
            connections: Mutex::default(),
            passed_bytes: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.over.load(Ordering::Relaxed) {
                    return;
                }
                if let Ok(client) = client {
                    accepting.take(client);
                }
            }
        });
        Ok(Self { address, shared })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many bytes have come through.
    pub fn passed_bytes(&self) -> u64 {
        self.shared.passed_bytes.load(Ordering::Relaxed)
    }

    /// From here on does this.
    pub fn set(&self, mode: Mode) {
        *lock(&self.shared.mode) = mode;
        if mode == Mode::Reset {
            self.reset_connections();
        }
    }

    /// Breaks off what is connected now.
    pub fn reset_connections(&self) {
        lock(&self.shared.connections).iter().for_each(|connection| connection.end());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.reset_connections();
        // Only to wake the thread that accepts.
        drop(TcpStream::connect_timeout(&self.address, LOOK_EVERY));
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        *lock(&self.mode)
    }

    fn take(self: &Arc<Self>, client: TcpStream) {
        let mode = self.mode();
        let full = lock(&self.connections).len() >= CONNECTIONS_MAX;
        if mode == Mode::Reset || full {
            break_off(&client);
            return;
        }
        let shared = Arc::clone(self);
        thread::spawn(move || {
            // A coordinator that is away looks to a client as it would without the proxy: the connection is refused.
            let server = match mode {
                Mode::Blackhole => None,
                _ => match TcpStream::connect_timeout(&shared.server, PEER_TIMEOUT) {
                    Ok(server) => Some(server),
                    Err(_) => return break_off(&client),
                },
            };
            shared.serve(client, server);
        });
    }

    fn serve(self: &Arc<Self>, client: TcpStream, server: Option<TcpStream>) {
        for stream in [Some(&client), server.as_ref()].into_iter().flatten() {
            let set = stream
                .set_read_timeout(Some(LOOK_EVERY))
                .and_then(|()| stream.set_write_timeout(Some(PEER_TIMEOUT)))
                .and_then(|()| stream.set_nodelay(true));
            if set.is_err() {
                return break_off(&client);
            }
        }
        let dead = AtomicBool::new(server.is_none());
        let (half_over, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let connection = Arc::new(Connection { client, server, dead, half_over, over });
        lock(&self.connections).push(Arc::clone(&connection));
        thread::scope(|scope| {
            scope.spawn(|| self.pump(&connection, Direction::ToClient));
            self.pump(&connection, Direction::ToServer);
        });
        lock(&self.connections).retain(|other| !Arc::ptr_eq(other, &connection));
    }

    /// Passes bytes on in one direction, until an end.
    fn pump(&self, connection: &Connection, direction: Direction) {
        let (from, to) = match direction {
            Direction::ToServer => (Some(&connection.client), connection.server.as_ref()),
            Direction::ToClient => (connection.server.as_ref(), Some(&connection.client)),
        };
        let Some(mut from) = from else { return };
        let mut chunk = vec![0; CHUNK_BYTES];
        while !connection.over.load(Ordering::Relaxed) {
            let count = match from.read(&mut chunk) {
                Ok(count) => count,
                Err(error) if is_timeout(&error) => continue,
                Err(_) => return connection.end(),
            };
            let mode = self.mode();
            if mode.swallows(direction) {
                connection.dead.store(true, Ordering::Relaxed);
            }
            if connection.dead.load(Ordering::Relaxed) {
                // The end is swallowed too: the other side hears nothing of it.
                if count == 0 {
                    return if to.is_none() { connection.end() } else { connection.wait_for_end() };
                }
                continue;
            }
            if count == 0 {
                return connection.end_in_order(to);
            }
            match mode {
                Mode::Delay(delay) => thread::sleep(delay),
                Mode::Bandwidth(bytes_per_sec) => {
                    thread::sleep(Duration::from_secs_f64(count as f64 / bytes_per_sec as f64));
                }
                _ => {}
            }
            let Some(mut to) = to else { continue };
            // Counted first: whoever has read them finds them counted.
            self.passed_bytes.fetch_add(count as u64, Ordering::SeqCst);
            if to.write_all(&chunk[..count]).is_err() {
                return connection.end();
            }
        }
    }
}

impl Connection {
    /// Breaks it off on both sides.
    fn end(&self) {
        if !self.over.swap(true, Ordering::Relaxed) {
            break_off(&self.client);
            self.server.iter().for_each(break_off);
        }
    }

    /// Passes an orderly end on; the other direction may still say something.
    fn end_in_order(&self, to: Option<&TcpStream>) {
        let shut = to.is_some_and(|to| to.shutdown(Shutdown::Write).is_ok());
        if self.half_over.swap(true, Ordering::Relaxed) || !shut {
            self.end();
        }
        self.wait_for_end();
    }

    /// The one side has ended; the other gets its time to notice.
    fn wait_for_end(&self) {
        let until = Instant::now() + PEER_TIMEOUT;
        while !self.over.load(Ordering::Relaxed) && Instant::now() < until {
            thread::sleep(LOOK_EVERY);
        }
        self.end();
    }
}

/// Ends a stream with a reset, so that neither side waits for it.
fn break_off(stream: &TcpStream) {
    // The only error is that it has ended already.
    let _ended = set_socket_linger(stream, Some(Duration::ZERO));
    let _ended = stream.shutdown(Shutdown::Both);
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || io::copy(&mut &stream, &mut &stream));
            }
        });
        address
    }

    fn ask(mut stream: &TcpStream) -> io::Result<[u8; 4]> {
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        stream.write_all(b"ping")?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn bytes_pass_are_swallowed_or_broken_off_as_it_is_told() {
        let proxy = Proxy::start(echo()).expect("a free port");
        let connect = || TcpStream::connect(proxy.address()).expect("it listens");
        let first = connect();
        assert_eq!(&ask(&first).expect("it passes"), b"ping");
        assert_eq!(proxy.passed_bytes(), 8);
        proxy.set(Mode::Delay(Duration::from_millis(20)));
        let asked = Instant::now();
        assert_eq!(&ask(&first).expect("it passes"), b"ping");
        assert!(asked.elapsed() >= Duration::from_millis(40));
        for mode in [Mode::DeafClient, Mode::MuteClient, Mode::Blackhole] {
            proxy.set(Mode::Pass);
            let stream = connect();
            assert_eq!(&ask(&stream).expect("it passes"), b"ping");
            proxy.set(mode);
            let error = ask(&stream).expect_err("swallowed");
            assert!(is_timeout(&error), "{mode:?}: {error}");
            assert!(is_timeout(&ask(&connect()).expect_err("swallowed")), "{mode:?}");
            // A connection that has lost bytes stays dead; a new one is well.
            proxy.set(Mode::Pass);
            assert!(is_timeout(&ask(&stream).expect_err("dead")), "{mode:?}");
            assert_eq!(&ask(&connect()).expect("it passes"), b"ping");
        }
        let last = connect();
        assert_eq!(&ask(&last).expect("it passes"), b"ping");
        proxy.set(Mode::Reset);
        assert!(!is_timeout(&ask(&last).expect_err("broken off")));
        assert!(!is_timeout(&ask(&connect()).expect_err("broken off")));
    }
}
