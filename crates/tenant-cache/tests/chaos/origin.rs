//! The origin that knows the truth: a version per entry, asked over a socket by the instances' loaders.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use conformance::history::Entry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::report::{KEYS, LOAD_TAKES, TENANTS, now};

const ROW: usize = KEYS as usize;

/// What is known of the entries, and where it is asked for.
pub(crate) struct Origin {
    rows: Mutex<Rows>,
    pub(crate) address: SocketAddr,
}

struct Rows {
    /// When each version of each entry was committed; version `n` is at `n - 1`.
    commits: Vec<Vec<u64>>,
    /// When each entry was last loaded.
    loaded: Vec<u64>,
    overlaps: u64,
}

impl Origin {
    pub(crate) async fn start() -> Arc<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let entries = (TENANTS * KEYS) as usize;
        let rows = Rows { commits: vec![Vec::new(); entries], loaded: vec![0; entries], overlaps: 0 };
        let origin = Arc::new(Self { rows: Mutex::new(rows), address });
        let serving = Arc::clone(&origin);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&serving).serve(socket));
            }
        });
        origin
    }

    async fn serve(self: Arc<Self>, mut socket: TcpStream) {
        let _ = socket.set_nodelay(true);
        // A question: the tenant, and `key` to commit a new version of it, `KEYS + key` to load it, else neither.
        while let (Ok(tenant), Ok(key)) = (socket.read_u32().await, socket.read_u32().await) {
            let versions = self.answer(tenant, key);
            let bytes: Vec<u8> = versions.into_iter().flat_map(u64::to_be_bytes).collect();
            if socket.write_all(&bytes).await.is_err() {
                break;
            }
        }
    }

    fn answer(&self, tenant: u32, key: u32) -> [u64; ROW] {
        let mut rows = self.rows.lock().unwrap();
        let (first, now) = ((tenant * KEYS) as usize, now());
        if key < KEYS {
            rows.commits[first + key as usize].push(now);
        } else if key < 2 * KEYS {
            let at = first + (key - KEYS) as usize;
            let before = std::mem::replace(&mut rows.loaded[at], now);
            rows.overlaps += u64::from(now - before < LOAD_TAKES.as_nanos() as u64);
        }
        std::array::from_fn(|key| rows.commits[first + key].len() as u64)
    }

    /// What was committed at a time.
    pub(crate) fn committed(&self, (tenant, key): Entry, at: u64) -> u64 {
        let rows = self.rows.lock().unwrap();
        rows.commits[(tenant * KEYS + key) as usize].partition_point(|commit| *commit <= at) as u64
    }

    /// Loads that began while another load of the same entry was under way.
    pub(crate) fn overlaps(&self) -> u64 {
        self.rows.lock().unwrap().overlaps
    }
}

/// An instance's way to the origin.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    idle: Arc<Mutex<Vec<TcpStream>>>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, idle: Arc::default() }
    }

    /// The versions of a tenant's rows.
    pub(crate) async fn versions(&self, tenant: u32) -> [u64; ROW] {
        self.ask(tenant, 2 * KEYS).await
    }

    /// The version of an entry, as a loader asks for it.
    pub(crate) async fn load(&self, (tenant, key): Entry) -> u64 {
        self.ask(tenant, KEYS + key).await[key as usize]
    }

    /// Commits a new version of an entry, and says all of the tenant's then.
    pub(crate) async fn commit(&self, (tenant, key): Entry) -> [u64; ROW] {
        self.ask(tenant, key).await
    }

    /// A connection whose answer was not waited for is not used again.
    async fn ask(&self, tenant: u32, key: u32) -> [u64; ROW] {
        let idle = self.idle.lock().unwrap().pop();
        let mut socket = match idle {
            Some(socket) => socket,
            None => TcpStream::connect(self.address).await.expect("the origin is there"),
        };
        let question = [tenant.to_be_bytes(), key.to_be_bytes()].concat();
        socket.write_all(&question).await.expect("the origin is there");
        let mut versions = [0; ROW];
        for version in &mut versions {
            *version = socket.read_u64().await.expect("the origin answers");
        }
        self.idle.lock().unwrap().push(socket);
        versions
    }
}
