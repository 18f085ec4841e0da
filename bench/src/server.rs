//! Requests a second of the real server, which resolves an organisation for each.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use conformance::redis_server::{RedisServer, answers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Size;
use crate::report::{Report, Row as Measured};
use crate::setup::runtime;

/// Names the server's program; `cargo xtask bench` builds it and sets this.
const PROGRAM: &str = "ORG_SERVER";
const CONNECTIONS: usize = 16;
const REQUESTS: usize = 40_000;
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A server that ends with this program, and the folder it keeps its things in.
struct Server {
    child: Child,
    folder: PathBuf,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Server {
    fn start(program: &Path, redis: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("bench-org-server-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("data"))?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(program)
            .current_dir(&folder)
            .env("BIND_ADDR", address.to_string())
            .env("ADMIN_BIND_ADDR", "none")
            .env("DATABASE_URL", "sqlite://data/orgs.db?mode=rwc")
            .env("REDIS_URL", redis)
            .env("ADMIN_TOKEN", "only-for-this-benchmark")
            // Of limits only the cost is to be seen.
            .env("RATE_LIMIT_API", "50000000/60s")
            .env("RUST_LOG", "warn")
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self { child, folder, address };
        let deadline = Instant::now() + START_DEADLINE;
        while !answers(address) {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended ({status})");
            }
            ensure!(Instant::now() < deadline, "the server does not answer within {START_DEADLINE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

pub fn run(size: Size, report: &mut Report) -> Result<()> {
    let program = std::env::var_os(PROGRAM)
        .with_context(|| format!("{PROGRAM} does not name the server's program: use `cargo xtask bench`"))?;
    let redis = RedisServer::start();
    let server = Server::start(Path::new(&program), &redis.url())?;
    let runtime = runtime(1);
    let requests = REQUESTS / size.less;
    let ask = |path: &str| {
        let took = runtime.block_on(ask(server.address, path, requests));
        took.map(|took| requests as f64 / took.as_secs_f64())
    };
    // Warm: the organisation is in memory, the connections were accepted once.
    ask("/v1/org")?;
    let mut row = Measured::new("server", "op/s");
    for _ in 0..size.rounds {
        row.add("ours", ask("/v1/org")?);
        row.add("bare GET /healthz of the same server", ask("/healthz")?);
    }
    report.finish(row);
    Ok(())
}

/// How long so many requests take, each connection sending its next when it has the answer.
async fn ask(address: SocketAddr, path: &str, requests: usize) -> Result<Duration> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: acme.localhost\r\n\r\n");
    let began = Instant::now();
    let mut connections = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let request = request.clone();
        connections.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut buffer = Vec::with_capacity(4_096);
            for _ in 0..requests / CONNECTIONS {
                stream.write_all(request.as_bytes()).await?;
                read_answer(&mut stream, &mut buffer).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = connections.join_next().await {
        ended??;
    }
    Ok(began.elapsed())
}

/// Reads one answer with a length, whole.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    loop {
        ensure!(stream.read_buf(buffer).await? > 0, "the server closed the connection");
        let Some(head) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head])?;
        ensure!(text.starts_with("HTTP/1.1 200"), "an unexpected answer: {text}");
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
        });
        if buffer.len() >= head + 4 + length.context("an answer without a length")?? {
            return Ok(());
        }
    }
}
