//! A faulty network for tests: a TCP proxy whose faults are changed while connections are open.
//!
//! ```
//! # use conformance::proxy::{Direction, Gate, Proxy};
//! # async fn example(redis: std::net::SocketAddr) {
//! let proxy = Proxy::start(redis).await;
//! // … connect the code under test to `proxy.address()` …
//! proxy.set(Direction::ToClient, Gate::Hold); // requests arrive, answers do not
//! proxy.set(Direction::ToClient, Gate::Pass); // the held answers arrive now
//! proxy.cut().await; // every connection is reset
//! # }
//! ```
//!
//! | fault | call |
//! |---|---|
//! | black hole: sockets stay open, no byte passes | [`Proxy::black_hole`]; one direction: [`Proxy::set`], [`Gate::Hold`] |
//! | slow: late, or a few bytes at a time | [`Gate::Delay`], [`Gate::Drip`] |
//! | cut in the middle of an answer | [`Gate::CutAfter`] |
//! | every connection reset | [`Proxy::cut`] |
//! | the server's side closed, the client's open | [`Proxy::half_open`] |
//! | nobody listens | [`Proxy::refuse`] |
//! | all well again | [`Proxy::heal`] |

mod pump;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::pump::{Stage, close_gently, pump, reset_on_drop};

/// Connections beyond this are closed at once.
const MOST_LINKS: usize = 4_096;
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Requests.
    ToServer,
    /// Answers.
    ToClient,
}

/// What happens to bytes in one direction, on all connections, those that are open included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// They pass.
    Pass,
    /// They are held, and pass later when the gate is opened; so is the end of the stream.
    Hold,
    /// They pass that much after they came.
    Delay(Duration),
    /// So many of them pass at a time.
    Drip {
        /// How many pass, at least 1.
        bytes: usize,
        /// How long until the next pass.
        every: Duration,
    },
    /// So many more pass on each connection; the byte after them resets it.
    CutAfter(usize),
}

/// A proxy in front of one server. Its connections are reset when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    to_server: Way,
    to_client: Way,
    state: Mutex<State>,
}

#[derive(Debug)]
struct Way {
    gate: watch::Sender<Gate>,
    passed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// The proxy was dropped; its accepting task may not know yet.
    closed: bool,
    open: HashMap<u64, Open>,
    /// Clients whose server is gone without a word to them.
    stranded: Vec<TcpStream>,
}

#[derive(Debug)]
struct Open {
    link: Arc<Link>,
    task: JoinHandle<()>,
}

/// Both sockets are reset when dropped, unless they were told otherwise.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: OnceLock<TcpStream>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and passes everything on to `upstream`.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let way = || Way { gate: watch::Sender::new(Gate::Pass), passed: AtomicU64::new(0) };
        let state = Mutex::new(State::default());
        let shared = Arc::new(Shared { upstream, to_server: way(), to_client: way(), state });
        let accepting = tokio::spawn(accept_all(listener, Arc::clone(&shared)));
        Self { address, shared, listening: tokio::sync::Mutex::new(Some(accepting)) }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets one direction's gate. Once this returns, no byte passes that the new gate would not let through.
    pub fn set(&self, direction: Direction, gate: Gate) {
        self.shared.way(direction).gate.send_replace(gate);
    }

    /// Holds every byte in both directions; sockets stay open, and new connections are accepted in silence.
    pub fn black_hole(&self) {
        self.set(Direction::ToServer, Gate::Hold);
        self.set(Direction::ToClient, Gate::Hold);
    }

    /// Listens and passes everything again. Connections that were cut or half open stay so.
    ///
    /// # Panics
    /// When somebody else took the port in the meantime.
    ///
    /// # Cancel safety
    /// When dropped, the gates are open, and it may not listen yet; call it again.
    pub async fn heal(&self) {
        self.set(Direction::ToServer, Gate::Pass);
        self.set(Direction::ToClient, Gate::Pass);
        let mut listening = self.listening.lock().await;
        if listening.is_none() {
            let listener = TcpListener::bind(self.address).await.expect("the port is still free");
            *listening = Some(tokio::spawn(accept_all(listener, Arc::clone(&self.shared))));
        }
    }

    /// Stops listening: new connections are refused, open ones stay. Ended by [`heal`](Self::heal).
    ///
    /// # Cancel safety
    /// When dropped, it stops listening a little later.
    pub async fn refuse(&self) {
        if let Some(task) = self.listening.lock().await.take() {
            end(task).await;
        }
    }

    /// Resets every connection, on both sides. New ones are accepted.
    ///
    /// # Cancel safety
    /// When dropped, some may be reset a little later.
    pub async fn cut(&self) {
        self.shared.state.lock().stranded.clear();
        for open in self.shared.take_all() {
            end(open.task).await;
        }
    }

    /// Closes the server's side of every connection and tells the client nothing: its socket stays open, takes
    /// some bytes, and never answers. New connections are not affected.
    ///
    /// # Cancel safety
    /// When dropped, some connections may be reset instead.
    pub async fn half_open(&self) {
        for Open { link, task } in self.shared.take_all() {
            end(task).await;
            let Some(Link { client, server }) = Arc::into_inner(link) else { continue };
            if let Some(server) = server.into_inner() {
                close_gently(&server);
            }
            self.shared.state.lock().stranded.push(client);
        }
    }

    /// How many connections pass bytes; half-open ones are not counted.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.state.lock().open.len()
    }

    /// How many bytes passed in a direction until now.
    #[must_use]
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.way(direction).passed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(task) = self.listening.get_mut().take() {
            task.abort();
        }
        // Tasks that were aborted and are not yet gone keep the shared state alive a little longer.
        let mut state = self.shared.state.lock();
        state.closed = true;
        state.stranded.clear();
        for open in state.open.drain().map(|(_, open)| open) {
            open.task.abort();
        }
    }
}

impl Shared {
    fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::ToServer => &self.to_server,
            Direction::ToClient => &self.to_client,
        }
    }

    fn take_all(&self) -> Vec<Open> {
        self.state.lock().open.drain().map(|(_, open)| open).collect()
    }

    fn open(self: &Arc<Self>, client: TcpStream) {
        reset_on_drop(&client);
        let link = Arc::new(Link { client, server: OnceLock::new() });
        // Locked until the connection is listed, so that its task cannot end before.
        let mut state = self.state.lock();
        if !state.closed && state.open.len() + state.stranded.len() < MOST_LINKS {
            let id = state.next;
            state.next += 1;
            let task = tokio::spawn(serve(Arc::clone(self), Arc::clone(&link), id));
            state.open.insert(id, Open { link, task });
        }
    }
}

async fn accept_all(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => shared.open(client),
            // Out of file descriptors, or the client gave up: neither is a reason to stop.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// One connection, from the connection to the server until both directions have ended.
async fn serve(shared: Arc<Shared>, link: Arc<Link>, id: u64) {
    if let Some(server) = connect(&shared, &link).await {
        let to_server = pump(&link.client, server, Stage::of(&shared.to_server));
        let to_client = pump(server, &link.client, Stage::of(&shared.to_client));
        if tokio::try_join!(to_server, to_client).is_ok() {
            close_gently(&link.client);
            close_gently(server);
        }
    }
    shared.state.lock().open.remove(&id);
}

async fn connect<'a>(shared: &Shared, link: &'a Link) -> Option<&'a TcpStream> {
    let connecting = TcpStream::connect(shared.upstream);
    let server = tokio::time::timeout(CONNECT_DEADLINE, connecting).await.ok()?.ok()?;
    reset_on_drop(&server);
    Some(link.server.get_or_init(|| server))
}

/// Ends a task and waits until everything it held is dropped.
async fn end(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}

#[cfg(test)]
mod tests;
