//! What others put under the lock's keys.

use std::time::Instant;

use cache_core::prelude::*;
use cache_core::{BackendErrorKind, LockError, LockOptions};
use cache_redis::{RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisLocks, RedisSettings};
use conformance::redis_server::RedisServer;
use conformance::resp::Reply;

use crate::fleet::{ALIVE, FENCE, OWNER, QUEUE, SLACK, instance, ms, only_the_fence_is_left, take};

/// A7: something else under a key of the lock is said as what it is, at once, and is not touched.
#[tokio::test]
async fn something_else_under_the_keys_is_a_typed_error() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    let strange: [&[&str]; 8] = [
        &["SET", OWNER, "another program's"],
        &["SET", OWNER, "another program's", "PX", "60000"],
        &["SET", OWNER, "ab/1"],
        &["HSET", OWNER, "f", "v"],
        &["SET", FENCE, "many"],
        &["SET", FENCE, "1e300"],
        &["RPUSH", QUEUE, "v"],
        &["SET", ALIVE, "v"],
    ];
    for command in strange {
        server.command(command);
        let key = command[1];
        let before = server.command(&["DUMP", key]);
        let began = Instant::now();
        for answer in [
            locks.acquire("k", &LockOptions::default()).await.map(drop),
            locks.try_acquire("k", &LockOptions::default()).await.map(drop),
        ] {
            let typed = matches!(&answer, Err(LockError::Backend(error)) if error.kind == BackendErrorKind::WrongType);
            assert!(typed, "{command:?}: {answer:?}");
        }
        assert!(began.elapsed() < SLACK, "{command:?}: {:?}", began.elapsed());
        assert_eq!(server.command(&["DUMP", key]), before, "{command:?}");
        server.command(&["DEL", OWNER, FENCE, QUEUE, ALIVE]);
        take(&locks).await.release().await.expect("an ordinary lock again");
    }
    only_the_fence_is_left(&server).await;
}

/// F4: a holder whose key was replaced by something else lets go without harm to it, and without a hang.
#[tokio::test]
async fn a_holder_whose_key_was_replaced_ends() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    let guard = locks.acquire("k", &LockOptions::default().with_ttl(ms(300))).await.expect("the lock");
    server.command(&["DEL", OWNER]);
    server.command(&["HSET", OWNER, "f", "v"]);
    let replaced = Instant::now();
    guard.lost().await;
    assert!(replaced.elapsed() < ms(300) + SLACK);
    assert!(matches!(guard.release().await, Err(LockError::Lost)));
    assert_eq!(server.command(&["TYPE", OWNER]).text().as_deref(), Some("hash"));
}

/// A8: times that cannot be are taken for the longest that can.
#[tokio::test]
async fn endless_times_are_possible() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    let endless =
        LockOptions::default().with_ttl(std::time::Duration::MAX).with_wait(std::time::Duration::MAX);
    let guard = locks.acquire("k", &endless).await.expect("the lock");
    assert!(tokio::time::timeout(ms(20), guard.lost()).await.is_err());
    guard.release().await.expect("released");
}

/// F13 of COHERENCE: a name with braces keeps its keys together, with a name per brace.
#[tokio::test]
async fn braces_in_names_are_escaped() {
    let server = RedisServer::start();
    let locks = instance(&server.url());
    for (name, fence) in
        [("{a}b", "{lock:%7Ba%7Db}:fence"), ("}x", "{lock:%7Dx}:fence"), ("%7B", "{lock:%257B}:fence")]
    {
        locks
            .acquire(name, &LockOptions::default())
            .await
            .expect("the lock")
            .release()
            .await
            .expect("released");
        assert_eq!(server.command(&["EXISTS", fence]), Reply::Integer(1), "{name}");
    }
}

/// A5: no prefix that entries are removed by reaches a lock, though both are in one Redis.
#[tokio::test]
async fn removing_entries_by_prefix_frees_no_lock() {
    let server = RedisServer::start();
    for prefix in ["", "staging:"] {
        let settings =
            RedisSettings::from_url(&server.url()).and_then(|settings| settings.with_key_prefix(prefix));
        let bus = RedisBus::on(RedisLink::lazy(settings.expect("settings")).expect("a link"));
        let locks = RedisLocks::on(bus.clone());
        let cache = RedisCacheService::on(bus, RedisCacheOptions::default());
        let guard = take(&locks).await;
        server.command(&["SET", &format!("{prefix}limit:api:ann"), "5"]);
        server.command(&["SET", &format!("{prefix}presence:{{acme}}"), "5"]);
        for root in ["l", "lo", "lock:", "{", "{l", "limit", "p", "presence:{", "s", "c"] {
            cache.set(&format!("{root}/entry"), &1, None).await.expect("set");
            let removed = cache.invalidate_prefix(root).await.expect("invalidate_prefix");
            assert!(removed <= 1, "{root}: {removed} were removed");
            assert_eq!(cache.get::<u32>("lo/entry").await.expect("get"), None, "{root}");
        }
        assert_eq!(server.command(&["EXISTS", &format!("{prefix}limit:api:ann")]), Reply::Integer(1));
        assert_eq!(server.command(&["EXISTS", &format!("{prefix}presence:{{acme}}")]), Reply::Integer(1));
        assert_eq!(
            server.command(&["EXISTS", &format!("{{{prefix}cache:invalidate}}:seq")]),
            Reply::Integer(1)
        );
        let fence = guard.fence();
        guard.release().await.expect("it was held all the time");
        let next = take(&locks).await;
        assert!(next.fence() > fence);
        next.release().await.expect("released");
    }
}
