//! A server and instances that share it.

use std::time::Duration;

use cache_core::prelude::*;
use cache_core::{LockGuard, LockOptions};
use cache_redis::{RedisBus, RedisLink, RedisLocks, RedisSettings};
use conformance::proxy::Proxy;
use conformance::redis_server::RedisServer;
use conformance::resp::Reply;
pub(crate) use conformance::wait::until;

/// The server's keys of the lock `k`.
pub(crate) const OWNER: &str = "lock:k";
pub(crate) const FENCE: &str = "{lock:k}:fence";
pub(crate) const QUEUE: &str = "{lock:k}:queue";
pub(crate) const ALIVE: &str = "{lock:k}:alive";

/// How much later than it should something may be seen on a busy machine.
pub(crate) const SLACK: Duration = Duration::from_millis(700);

/// The locks of an instance that reaches Redis there.
pub(crate) fn instance(url: &str) -> RedisLocks {
    let settings = RedisSettings::from_url(url).expect("a URL");
    RedisLocks::on(RedisBus::on(RedisLink::lazy(settings).expect("a link")))
}

/// The locks of an instance that reaches Redis through a proxy.
pub(crate) fn instance_behind(proxy: &Proxy) -> RedisLocks {
    instance(&format!("redis://{}", proxy.address()))
}

pub(crate) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(crate) fn ttl(ttl: Duration) -> LockOptions {
    LockOptions::default().with_ttl(ttl)
}

/// Takes the lock `k`, waiting for it.
pub(crate) async fn take(locks: &RedisLocks) -> LockGuard {
    locks.acquire("k", &LockOptions::default()).await.expect("the lock")
}

pub(crate) fn queued(server: &RedisServer) -> usize {
    let waiting = server.command(&["ZRANGE", QUEUE, "0", "-1"]);
    waiting.items().len()
}

pub(crate) fn owner(server: &RedisServer) -> Option<String> {
    server.command(&["GET", OWNER]).text()
}

/// F4: nothing of the lock `k` is left but its fence, and that for a week at most.
pub(crate) async fn only_the_fence_is_left(server: &RedisServer) {
    let keys = || {
        let keys = server.command(&["KEYS", "*lock:*"]);
        keys.items().iter().filter_map(Reply::text).collect::<Vec<_>>()
    };
    until("the end of the rest", || keys() == [FENCE]).await;
    let life = server.command(&["TTL", FENCE]);
    assert!(matches!(life, Reply::Integer(1..=604_800)), "a week at most: {life:?}");
}
