//! `cargo xtask demo`: a Redis and two servers, with what to look at.

use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use conformance::redis_server::RedisServer;

use crate::process::{self, cargo, root};
use crate::redis;

const ADDRESSES: [&str; 2] = ["127.0.0.1:8081", "127.0.0.1:8082"];
const TOKEN: &str = "demo-token";

/// A server that ends with this program.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run() -> Result<()> {
    redis::ensure()?;
    process::run(cargo().args(["build", "-p", "org-server"]))?;
    let redis = RedisServer::start();
    let data = std::env::temp_dir().join(format!("org-server-demo-{}", std::process::id()));
    std::fs::create_dir_all(&data)?;
    // One after the other: the first makes the database and imports the sample.
    let _first = start(ADDRESSES[0], &data, &redis)?;
    wait_for(ADDRESSES[0]);
    let _second = start(ADDRESSES[1], &data, &redis)?;
    wait_for(ADDRESSES[1]);
    explain(&redis);
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("waiting for Enter")?;
    let _ = std::fs::remove_dir_all(data);
    Ok(())
}

fn start(address: &str, data: &Path, redis: &RedisServer) -> Result<Server> {
    let program = root().join("target/debug/org-server");
    let child = Command::new(program)
        .current_dir(data)
        .env("BIND_ADDR", address)
        .env("REDIS_URL", redis.url())
        .env("ADMIN_TOKEN", TOKEN)
        .env("RUST_LOG", "warn")
        .spawn()
        .context("cannot start the server")?;
    Ok(Server(child))
}

fn wait_for(address: &str) {
    let Ok(address) = address.parse() else { return };
    for _ in 0..200 {
        if conformance::redis_server::answers(address) {
            return;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}

fn explain(redis: &RedisServer) {
    let [first, second] = ADDRESSES;
    println!(
        "\nTwo servers on one Redis ({url}). Try:\n\n\
         1. The first answer comes from the database, the next from memory (see `cache-status`):\n   \
            curl -i -H 'Host: acme.localhost' http://{first}/v1/org\n   \
            curl -i -H 'Host: acme.localhost' http://{second}/v1/org\n\n\
         2. A change through one is seen by the other at once:\n   \
            curl -X PUT -H 'Authorization: Bearer {TOKEN}' -H 'Content-Type: application/json' \\\n     \
              -d '{{\"name\":\"Acme Renamed\"}}' http://{first}/admin/orgs/acme\n   \
            curl -H 'Host: acme.localhost' http://{second}/v1/org\n\n\
         3. What travels:\n   \
            redis-cli -u {url} SUBSCRIBE cache:invalidate\n   \
            redis-cli -u {url} MONITOR\n\n\
         Press Enter to stop everything.",
        url = redis.url(),
    );
}
