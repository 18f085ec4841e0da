//! A way to the server on which bytes can vanish.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Forwards connections, and can turn all present ones into black holes: they stay open, and nothing arrives
/// any more in either direction. Those that are made afterwards work.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    /// Connections with a lower number are black holes.
    good_from: Arc<AtomicU64>,
    accepted: Arc<AtomicU64>,
    acceptor: JoinHandle<()>,
}

impl Proxy {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (good_from, accepted) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (good, count) = (Arc::clone(&good_from), Arc::clone(&accepted));
        let acceptor = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let number = count.fetch_add(1, Ordering::SeqCst);
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(forward(from_client, to_server, number, Arc::clone(&good)));
                tokio::spawn(forward(from_server, to_client, number, Arc::clone(&good)));
            }
        });
        Self { address, good_from, accepted, acceptor }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Swallows what is sent on the connections there are.
    pub fn swallow(&self) {
        self.good_from.store(self.accepted.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, number: u64, good_from: Arc<AtomicU64>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if number >= good_from.load(Ordering::SeqCst) && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
