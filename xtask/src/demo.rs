//! `cargo xtask demo`: a Redis and two servers, with what to look at.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use conformance::redis_server::{RedisServer, answers};

use crate::process::{self, cargo, root};
use crate::redis;

const ADDRESSES: [&str; 2] = ["127.0.0.1:8080", "127.0.0.1:8090"];
/// Where each answers operators.
const OPERATORS: [&str; 2] = ["127.0.0.1:8081", "127.0.0.1:8091"];
const TOKEN: &str = "only-for-this-demo";
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A server that ends with this program.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder that goes with this program.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn run() -> Result<()> {
    for address in ADDRESSES.into_iter().chain(OPERATORS) {
        if answers(address.parse()?) {
            bail!("the demo needs {address}, where something else listens already");
        }
    }
    redis::ensure()?;
    process::run(cargo().args(["build", "-p", "org-server"]))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let redis = RedisServer::start();
    let data = Folder(std::env::temp_dir().join(format!("org-server-demo-{}", std::process::id())));
    std::fs::create_dir_all(data.0.join("data"))?;
    // One after the other: the first makes the database, and both read the same.
    let _servers = [start(0, &data.0, &redis)?, start(1, &data.0, &redis)?];
    explain(&redis);
    runtime.block_on(tokio::signal::ctrl_c()).context("waiting for Ctrl-C")?;
    println!("\nstopped");
    Ok(())
}

fn start(number: usize, data: &Path, redis: &RedisServer) -> Result<Server> {
    let address = ADDRESSES[number];
    let child = Command::new(program())
        .current_dir(data)
        .env("BIND_ADDR", address)
        .env("ADMIN_BIND_ADDR", OPERATORS[number])
        .env("DATABASE_URL", "sqlite://data/orgs.db?mode=rwc")
        .env("REDIS_URL", redis.url())
        .env("ADMIN_TOKEN", TOKEN)
        .env("RUST_LOG", "warn")
        .spawn()
        .context("cannot start the server")?;
    let mut server = Server(child);
    let started = Instant::now();
    while !answers(address.parse()?) {
        if let Some(status) = server.0.try_wait()? {
            bail!("the server for {address} ended ({status})");
        }
        if started.elapsed() > START_DEADLINE {
            bail!("the server for {address} does not answer within {START_DEADLINE:?}");
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    Ok(server)
}

fn program() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("debug/org-server")
}

fn explain(redis: &RedisServer) {
    let ([first, second], [operators, _]) = (ADDRESSES, OPERATORS);
    println!(
        "\nTwo servers on one Redis ({url}). Try:\n\n\
         1. The first answer comes from the database, the other server's from Redis, and any further one from memory\n   \
            (see `cache-status`):\n   \
            curl -i -H 'Host: acme.localhost' http://{first}/v1/org\n   \
            curl -i -H 'Host: acme.localhost' http://{second}/v1/org\n\n\
         2. A change through one is seen by the other at once:\n   \
            curl -X PUT -H 'Authorization: Bearer {TOKEN}' -H 'Content-Type: application/json' \\\n     \
              -d '{{\"name\":\"Acme Renamed\"}}' http://{operators}/admin/orgs/acme\n   \
            curl -H 'Host: acme.localhost' http://{second}/v1/org\n\n\
         3. What travels:\n   \
            redis-cli -u {url} SUBSCRIBE cache:invalidate\n   \
            redis-cli -u {url} MONITOR\n\n\
         Press Ctrl-C to stop everything.",
        url = redis.url(),
    );
}
