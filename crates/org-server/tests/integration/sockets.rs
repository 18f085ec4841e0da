//! Connections that cost a server more than they cost the client: each is ended by its deadline, and none keeps others
//! out. Real sockets on loopback.

use std::net::SocketAddr;
use std::time::Duration;

use org_server::serve::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::common::{Folder, eventually, settings};

/// How long what the deadlines of these tests end may take on a busy machine.
const SOON: Duration = Duration::from_secs(15);
const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: h\r\n";

/// A server on a real listener, stopped when it is told or dropped.
struct Listening {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
    _folder: Folder,
}

impl Listening {
    async fn start(values: &[(&str, &str)]) -> Self {
        let folder = Folder::new();
        let server = Server::start(settings(&folder, values)).await.expect("the server starts");
        let address = server.address().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            let stopped = async { stopped.await.unwrap_or_default() };
            server.run(stopped).await;
        });
        Self { address, stop, running, _folder: folder }
    }

    async fn open(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it accepts")
    }

    /// A connection on which this was sent.
    async fn sending(&self, text: &str) -> TcpStream {
        let mut stream = self.open().await;
        stream.write_all(text.as_bytes()).await.expect("sent");
        stream
    }

    /// Asks on a connection of its own.
    async fn is_healthy(&self) {
        let stream = self.sending(&format!("{HEALTH}connection: close\r\n\r\n")).await;
        let answer = all_of(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok\n"), "{answer}");
    }
}

/// Everything until the other end closes; a reset is an end, too.
async fn all_of(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let read = timeout(SOON, stream.read_to_end(&mut text)).await;
    let _ = read.expect("the connection is ended");
    String::from_utf8_lossy(&text).into_owned()
}

/// The head of the next answer, and its body when that is `ok`.
async fn answer(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"ok\n") {
        let byte = timeout(SOON, stream.read_u8()).await.expect("an answer in time");
        text.push(byte.expect("an answer"));
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A request whose head never ends is given up, silent or dripping, and others are served meanwhile.
#[tokio::test]
async fn half_headers_are_given_up() {
    let server = Listening::start(&[("HEADER_TIMEOUT", "300ms"), ("IDLE_TIMEOUT", "1h")]).await;
    let mut stuck = vec![server.open().await];
    for _ in 0..20 {
        stuck.push(server.sending(HEALTH).await);
    }
    server.is_healthy().await;
    for stream in stuck {
        assert_eq!(all_of(stream).await, "");
    }
    let (mut reading, mut writing) = server.sending(HEALTH).await.into_split();
    let dripping = tokio::spawn(async move {
        while writing.write_all(b"x-more: 1\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut rest = Vec::new();
    let _ = timeout(SOON, reading.read_to_end(&mut rest)).await.expect("a dripping head is given up");
    dripping.abort();
}

/// A connection without a request is closed after the idle time, and the next request's head has its own time.
#[tokio::test]
async fn idle_connections_are_closed() {
    let server = Listening::start(&[("HEADER_TIMEOUT", "300ms"), ("IDLE_TIMEOUT", "3s")]).await;
    let mut kept = server.sending(&format!("{HEALTH}\r\n")).await;
    answer(&mut kept).await;
    // Longer than a head may take: waiting between requests is not a head.
    tokio::time::sleep(Duration::from_millis(600)).await;
    kept.write_all(format!("{HEALTH}\r\n").as_bytes()).await.expect("still open");
    assert!(answer(&mut kept).await.starts_with("HTTP/1.1 200"));
    assert_eq!(all_of(kept).await, "", "closed after the idle time");

    let server = Listening::start(&[("HEADER_TIMEOUT", "300ms"), ("IDLE_TIMEOUT", "1h")]).await;
    let mut kept = server.sending(&format!("{HEALTH}\r\n")).await;
    answer(&mut kept).await;
    kept.write_all(HEALTH.as_bytes()).await.expect("still open");
    assert_eq!(all_of(kept).await, "", "the second head has the time of a head");
}

/// Silent sockets take no more places than there are, and a newcomer gets one at once: that of the connection
/// which has waited longest.
#[tokio::test]
async fn silent_sockets_keep_nobody_out() {
    for limit in ["MAX_CONNECTIONS", "MAX_CONNECTIONS_PER_CLIENT"] {
        let server =
            Listening::start(&[(limit, "8"), ("HEADER_TIMEOUT", "1h"), ("IDLE_TIMEOUT", "1h")]).await;
        let mut silent = Vec::new();
        for _ in 0..40 {
            silent.push(server.open().await);
        }
        server.is_healthy().await;
        for stream in silent.drain(..32) {
            assert_eq!(all_of(stream).await, "", "{limit}");
        }
        server.is_healthy().await;
    }
}

/// A head has at most 64 KiB and 64 fields.
#[tokio::test]
async fn a_huge_head_is_refused() {
    let server = Listening::start(&[("HEADER_TIMEOUT", "1h")]).await;
    let huge = format!("{HEALTH}x-huge: {}", "x".repeat(100 * 1024));
    let many = format!("{HEALTH}{}\r\n", "x-many: 1\r\n".repeat(70));
    for head in [huge, many] {
        let mut stream = server.open().await;
        // The server may close before it has read all of it.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut start = [0; 12];
        let read = timeout(SOON, stream.read_exact(&mut start)).await.expect("refused in time");
        assert!(read.is_err() || &start == b"HTTP/1.1 431", "{}", String::from_utf8_lossy(&start));
    }
    server.is_healthy().await;
}

/// A client that asks and does not read is let go, and others are answered meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_are_let_go() {
    let server = Listening::start(&[("WRITE_TIMEOUT", "300ms"), ("IDLE_TIMEOUT", "1h")]).await;
    let asking = (0..4).map(|_| {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4 * 1024).expect("a small buffer");
        let address = server.address;
        tokio::spawn(async move {
            let mut stream = socket.connect(address).await.expect("it accepts");
            let request = "GET /o/acme/v1/org HTTP/1.1\r\nhost: h\r\n\r\n".repeat(100);
            // Ends when the server has closed: nothing is read here.
            while stream.write_all(request.as_bytes()).await.is_ok() {}
        })
    });
    let asking: Vec<_> = asking.collect();
    server.is_healthy().await;
    for client in asking {
        timeout(SOON, client).await.expect("let go").expect("no panic");
    }
}

/// Told to stop, a server closes idle connections, answers what is in flight, and accepts nothing new.
#[tokio::test]
async fn a_stop_closes_idle_connections() {
    let server = Listening::start(&[("IDLE_TIMEOUT", "1h"), ("SHUTDOWN_TIMEOUT", "1h")]).await;
    let mut idle = server.sending(&format!("{HEALTH}\r\n")).await;
    answer(&mut idle).await;
    server.stop.send(()).expect("it runs");
    assert_eq!(all_of(idle).await, "");
    timeout(SOON, server.running).await.expect("it ends").expect("no panic");
    eventually("nobody listens", || async { TcpStream::connect(server.address).await.is_err() }).await;
}
