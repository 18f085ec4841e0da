use std::future::Future;
use std::io::ErrorKind;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a byte that is not held to arrive.
const QUIET: Duration = Duration::from_millis(100);

/// Answers with what it gets; says how many connections it has.
struct Echo {
    address: SocketAddr,
    open: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn echo() -> Echo {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (count, open) = watch::channel(0);
    let count = Arc::new(count);
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            count.send_modify(|count| *count += 1);
            connections.spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                count.send_modify(|count| *count -= 1);
            });
        }
    });
    Echo { address, open, task }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.expect("it happens soon")
}

async fn pair() -> (Echo, Proxy, TcpStream) {
    let echo = echo().await;
    let proxy = Proxy::start(echo.address).await;
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut client, b"hello").await, b"hello");
    (echo, proxy, client)
}

async fn ask(client: &mut TcpStream, bytes: &[u8]) -> Vec<u8> {
    client.write_all(bytes).await.unwrap();
    answer(client, bytes.len()).await
}

async fn answer(client: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    soon(client.read_exact(&mut bytes)).await.unwrap();
    bytes
}

async fn is_silent(client: &mut TcpStream) -> bool {
    timeout(QUIET, client.read(&mut [0; 1])).await.is_err()
}

async fn end_of(client: &mut TcpStream) -> Result<usize, ErrorKind> {
    soon(client.read(&mut [0; 1])).await.map_err(|error| error.kind())
}

async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(waiting).await;
}

#[tokio::test]
async fn bytes_and_ends_pass_both_ways() {
    let (mut echo, proxy, mut client) = pair().await;
    let big: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    let (mut reader, mut writer) = client.split();
    let mut back = vec![0; big.len()];
    let (sent, read) =
        soon(async { tokio::join!(writer.write_all(&big), reader.read_exact(&mut back)) }).await;
    sent.unwrap();
    read.unwrap();
    assert!(back == big);
    assert_eq!(proxy.passed(Direction::ToServer), 1_000_005);
    client.shutdown().await.unwrap();
    assert_eq!(end_of(&mut client).await, Ok(0), "the end came back, not a reset");
    soon(echo.open.wait_for(|open| *open == 0)).await.unwrap();
    until(|| proxy.connections() == 0).await;
}

/// SF3: a black hole keeps sockets open and loses nothing.
#[tokio::test]
async fn a_black_hole_holds_bytes_until_it_ends() {
    let (_echo, proxy, mut client) = pair().await;
    proxy.black_hole();
    client.write_all(b"held").await.unwrap();
    assert!(is_silent(&mut client).await);
    assert_eq!(proxy.passed(Direction::ToServer), 5, "no byte passed");
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    new.write_all(b"new").await.unwrap();
    assert!(is_silent(&mut new).await, "a new connection is accepted in silence");
    proxy.heal().await;
    assert_eq!(answer(&mut client, 4).await, b"held");
    assert_eq!(answer(&mut new, 3).await, b"new");
}

#[tokio::test]
async fn one_direction_can_be_held() {
    let (_echo, proxy, mut client) = pair().await;
    proxy.set(Direction::ToClient, Gate::Hold);
    client.write_all(b"once").await.unwrap();
    until(|| proxy.passed(Direction::ToServer) == 9).await;
    assert!(is_silent(&mut client).await);
    proxy.set(Direction::ToClient, Gate::Pass);
    assert_eq!(answer(&mut client, 4).await, b"once");
}

#[tokio::test]
async fn what_is_held_is_bounded() {
    let (_echo, proxy, mut client) = pair().await;
    proxy.black_hole();
    let chunk = vec![0; 1 << 20];
    let filled = timeout(Duration::from_secs(1), async {
        for _ in 0..100 {
            client.write_all(&chunk).await.unwrap();
        }
    });
    assert!(filled.await.is_err(), "100 MiB were taken by a black hole");
}

#[tokio::test]
async fn a_cut_resets_both_sides() {
    let (mut echo, proxy, mut client) = pair().await;
    proxy.cut().await;
    assert_eq!(end_of(&mut client).await, Err(ErrorKind::ConnectionReset));
    assert_eq!(proxy.connections(), 0);
    soon(echo.open.wait_for(|open| *open == 0)).await.unwrap();
    let mut next = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut next, b"again").await, b"again");
}

#[tokio::test]
async fn a_cut_in_the_middle_of_an_answer() {
    let (_echo, proxy, mut client) = pair().await;
    proxy.set(Direction::ToClient, Gate::CutAfter(3));
    client.write_all(b"abcdef").await.unwrap();
    let mut got = Vec::new();
    let ended = soon(client.read_to_end(&mut got)).await;
    // The three bytes may be overtaken by the reset.
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(b"abc".starts_with(&got), "{got:?}");
    assert_eq!(proxy.passed(Direction::ToClient), 8);
}

#[tokio::test]
async fn nobody_listens_until_it_heals() {
    let (_echo, proxy, mut client) = pair().await;
    proxy.refuse().await;
    let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(ask(&mut client, b"open ones stay").await, b"open ones stay");
    proxy.heal().await;
    let mut next = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut next, b"again").await, b"again");
}

#[tokio::test]
async fn a_half_open_connection_takes_and_never_answers() {
    let (mut echo, proxy, mut client) = pair().await;
    proxy.half_open().await;
    soon(echo.open.wait_for(|open| *open == 0)).await.expect("the server's side is closed");
    client.write_all(b"anybody?").await.unwrap();
    assert!(is_silent(&mut client).await);
    proxy.heal().await;
    assert!(is_silent(&mut client).await, "for this connection there is no healing");
    let mut next = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(ask(&mut next, b"again").await, b"again");
    proxy.cut().await;
    assert_eq!(end_of(&mut client).await, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_delay_keeps_the_distance_between_bytes() {
    let (_echo, proxy, mut client) = pair().await;
    let delay = Duration::from_millis(200);
    proxy.set(Direction::ToClient, Gate::Delay(delay));
    let started = Instant::now();
    for byte in b"abcdefghij" {
        client.write_all(&[*byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(answer(&mut client, 10).await, b"abcdefghij");
    let took = started.elapsed();
    assert!(took >= delay && took < 5 * delay, "delayed once, not for each byte: {took:?}");
}

#[tokio::test]
async fn a_drip_passes_a_few_bytes_at_a_time() {
    let (_echo, proxy, mut client) = pair().await;
    proxy.set(Direction::ToServer, Gate::Drip { bytes: 2, every: Duration::from_millis(20) });
    let started = Instant::now();
    assert_eq!(ask(&mut client, b"abcdefgh").await, b"abcdefgh");
    assert!(started.elapsed() >= Duration::from_millis(60), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_absent_server_is_a_reset() {
    let absent = echo().await.address;
    until(|| std::net::TcpStream::connect(absent).is_err()).await;
    let proxy = Proxy::start(absent).await;
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(end_of(&mut client).await, Err(ErrorKind::ConnectionReset));
    until(|| proxy.connections() == 0).await;
}

#[tokio::test]
async fn a_dropped_proxy_leaves_no_task() {
    let echo = echo().await;
    let before = Handle::current().metrics().num_alive_tasks();
    let proxy = Proxy::start(echo.address).await;
    let mut clients = Vec::new();
    for at in 0..9 {
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        ask(&mut client, b"x").await;
        clients.push(client);
        match at {
            3 => proxy.half_open().await,
            5 => proxy.set(Direction::ToClient, Gate::Delay(Duration::ZERO)),
            _ => {}
        }
    }
    proxy.black_hole();
    drop(proxy);
    for client in &mut clients {
        assert_eq!(end_of(client).await, Err(ErrorKind::ConnectionReset));
    }
    until(|| *echo.open.borrow() == 0).await;
    until(|| Handle::current().metrics().num_alive_tasks() == before).await;
}
