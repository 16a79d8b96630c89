//! A network that counts bytes and breaks when told to.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::broadcast,
};

/// Passes connections on to a server.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    line: Line,
}

/// What all connections share.
#[derive(Clone)]
struct Line {
    passed: Arc<AtomicU64>,
    /// Breaks all connections when so many bytes have passed in all; then never again.
    break_at: Arc<AtomicU64>,
    broken: broadcast::Sender<()>,
}

impl Proxy {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let line = Line {
            passed: Arc::default(),
            break_at: Arc::new(AtomicU64::new(u64::MAX)),
            broken: broadcast::channel(1).0,
        };
        let shared = line.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(server).await.unwrap();
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(shared.clone().pass(from_client, to_server));
                tokio::spawn(shared.clone().pass(from_server, to_client));
            }
        });
        Self { address, line }
    }

    /// Bytes that have passed, both ways together.
    pub(crate) fn passed(&self) -> u64 {
        self.line.passed.load(Ordering::SeqCst)
    }

    /// Breaks all connections once, after so many more bytes.
    pub(crate) fn break_after(&self, bytes: u64) {
        self.line.break_at.store(self.passed() + bytes, Ordering::SeqCst);
    }
}

impl Line {
    async fn pass(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut broken = self.broken.subscribe();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = tokio::select! {
                count = from.read(&mut buffer) => count.unwrap_or(0),
                _ = broken.recv() => return,
            };
            let passed = self.passed.fetch_add(count as u64, Ordering::SeqCst) + count as u64;
            if passed >= self.break_at.load(Ordering::SeqCst) {
                self.break_at.store(u64::MAX, Ordering::SeqCst);
                let _ = self.broken.send(());
                return;
            }
            if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
}
