//! What is particular to Redis: one command per hit, expiry on every key, prefixes, outages and their end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cache_core::prelude::*;
use cache_core::{BackendErrorKind, LeaseToken, Lookup};
use cache_redis::{RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
use conformance::redis_server::RedisServer;
use conformance::resp::Reply;

fn service(url: &str) -> RedisCacheService {
    prefixed(url, "")
}

fn prefixed(url: &str, prefix: &str) -> RedisCacheService {
    let settings = RedisSettings::from_url(url).and_then(|settings| settings.with_key_prefix(prefix));
    let link = RedisLink::lazy(settings.expect("settings")).expect("a link");
    RedisCacheService::on(RedisBus::on(link), RedisCacheOptions::default())
}

/// Waits until a call succeeds, as a service that recovers by itself does.
async fn until_it_works(cache: &RedisCacheService) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = cache.get_bytes("k").await {
        assert!(Instant::now() < deadline, "still: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often each command was called, as the server counts.
fn calls(server: &RedisServer, command: &str) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]).text().expect("text");
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.and_then(|line| line.split(',').next()).and_then(|calls| calls.parse().ok()).unwrap_or(0)
}

/// SC8, A5: a hit is one `GET`, a bulk one `MGET`, and nothing ever calls `KEYS`.
#[tokio::test]
async fn a_hit_is_one_get() {
    let server = RedisServer::start();
    let cache = service(&server.url());
    cache.set("a", &1, None).await.expect("set");
    for _ in 0..10 {
        assert_eq!(cache.get("a").await.expect("get"), Some(1));
    }
    assert_eq!((calls(&server, "get"), calls(&server, "mget")), (10, 0));
    cache.get_many::<u32>(&["a", "b", "c"]).await.expect("get_many");
    assert_eq!((calls(&server, "get"), calls(&server, "mget")), (10, 1));
    cache.invalidate_prefix("a").await.expect("invalidate_prefix");
    assert_eq!(calls(&server, "keys"), 0);
    assert!(calls(&server, "scan") >= 1);
}

/// C2: every key that is written carries an expiry: values, leases, fills.
#[tokio::test]
async fn every_write_carries_an_expiry() {
    let server = RedisServer::start();
    let cache = service(&server.url());
    let life = |key: &str| match server.command(&["PTTL", key]) {
        Reply::Integer(life) => life,
        other => panic!("{other:?}"),
    };
    cache.set("default", &1, None).await.expect("set");
    assert!((299_000..=300_000).contains(&life("default")));
    cache.set_many(&[("m1", 1), ("m2", 2)], Duration::from_secs(7)).await.expect("set_many");
    assert!((6_000..=7_000).contains(&life("m2")));
    let Ok(Lookup::Granted(claim)) =
        cache.get_or_lease("leased", LeaseToken::random(), Duration::from_secs(3)).await
    else {
        panic!("the lease is free");
    };
    assert!((2_000..=3_000).contains(&life("leased")));
    assert!(cache.fill("leased", &claim, "1".into(), Ttl::Default).await.expect("fill"));
    assert!((299_000..=300_000).contains(&life("leased")));
    cache.take_lease("leased", LeaseToken::random(), Duration::from_secs(3)).await.expect("take_lease");
    assert!((2_000..=3_000).contains(&life("leased")));
}

/// C8: deployments with different prefixes share a server and nothing else.
#[tokio::test]
async fn prefixes_keep_deployments_apart() {
    let server = RedisServer::start();
    let (blue, green) = (prefixed(&server.url(), "blue:"), prefixed(&server.url(), "green:"));
    blue.set("k", &1, None).await.expect("set");
    green.set("k", &2, None).await.expect("set");
    assert_eq!(blue.get("k").await.expect("get"), Some(1));
    assert_eq!(server.command(&["GET", "green:k"]).text().as_deref(), Some("2"));
    assert_eq!(blue.invalidate_prefix("k").await.expect("invalidate_prefix"), 1);
    assert_eq!(green.get("k").await.expect("get"), Some(2));
    green.invalidate("k").await.expect("invalidate");
    assert_eq!(green.get::<u32>("k").await.expect("get"), None);
}

/// C6: a server that forgot the scripts (restarted, flushed) gets them again, unnoticed.
#[tokio::test]
async fn forgotten_scripts_are_sent_again() {
    let server = RedisServer::start();
    let cache = service(&server.url());
    for _ in 0..3 {
        let Ok(Lookup::Granted(claim)) =
            cache.get_or_lease("k", LeaseToken::random(), Duration::from_secs(3)).await
        else {
            panic!("the lease is free");
        };
        assert_eq!(server.command(&["SCRIPT", "FLUSH"]).text().as_deref(), Some("OK"));
        assert!(cache.fill("k", &claim, "1".into(), Ttl::Default).await.expect("fill"));
        cache.invalidate("k").await.expect("invalidate");
    }
}

/// C5, SC10, SC5, L3: with Redis dead every call returns by its deadline, soon at once without being sent; and it
/// recovers by itself when Redis is back.
#[tokio::test]
async fn a_dead_server_is_not_called_and_comes_back() {
    let mut server = RedisServer::start();
    let cache = service(&server.url());
    cache.set("k", &1, None).await.expect("set");
    server.kill();
    let mut refused = None;
    for _ in 0..20 {
        let started = Instant::now();
        let error = cache.get_bytes("k").await.expect_err("Redis is dead");
        assert!(started.elapsed() < Duration::from_secs(2), "{error} after {:?}", started.elapsed());
        if matches!(&error, CacheError::Backend(error) if error.kind == BackendErrorKind::CircuitOpen) {
            refused = Some(started.elapsed());
            break;
        }
    }
    let refused = refused.expect("the breaker opened");
    assert!(refused < Duration::from_millis(50), "refused without asking, in {refused:?}");
    assert!(cache.redis().is_broken());
    for error in [
        cache.set("k", &1, None).await.expect_err("set"),
        cache.invalidate("k").await.expect_err("invalidate"),
        cache.invalidate_prefix("k").await.expect_err("invalidate_prefix"),
        cache
            .get_or_lease("k", LeaseToken::random(), Duration::from_secs(1))
            .await
            .expect_err("get_or_lease"),
        cache.health().await.expect_err("health"),
    ] {
        assert!(error.is_transient(), "{error}");
    }
    server.restart();
    until_it_works(&cache).await;
    assert!(!cache.redis().is_broken());
}

/// C5, SC10: a frozen server costs the response deadline, not minutes, and a connection that stays silent is
/// replaced.
#[tokio::test]
async fn a_frozen_server_costs_the_deadline() {
    let server = RedisServer::start();
    let cache = service(&server.url());
    cache.set("k", &1, None).await.expect("set");
    let before = cache.redis().connections_made();
    server.pause();
    for _ in 0..3 {
        let started = Instant::now();
        let error = cache.get_bytes("k").await.expect_err("frozen");
        assert!(matches!(error, CacheError::Timeout { .. }), "{error:?}");
        assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
    }
    server.resume();
    until_it_works(&cache).await;
    assert!(cache.redis().connections_made() > before, "the silent connection was replaced");
}

/// C4: a server that was never there is an error by kind, and no panic, TLS included.
#[tokio::test]
async fn an_absent_server_is_an_error_by_kind() {
    for url in [
        "redis://127.0.0.1:1",
        "rediss://127.0.0.1:1",
        "redis+unix:///nowhere.sock",
        "redis://nosuchhost.invalid",
    ] {
        let cache =
            RedisCacheService::new(url, Duration::from_secs(60)).expect("an absent server is no error");
        let error = cache.get_bytes("k").await.expect_err("nobody is there");
        let unavailable =
            matches!(&error, CacheError::Backend(error) if error.kind == BackendErrorKind::Unavailable);
        assert!(unavailable || matches!(error, CacheError::Timeout { .. }), "{url}: {error:?}");
    }
}

/// C4, A7: a wrong password is `Denied`, and shown nowhere.
#[tokio::test]
async fn a_wrong_password_is_denied_and_not_shown() {
    let server = RedisServer::start();
    server.command(&["CONFIG", "SET", "requirepass", "right"]);
    let url = server.url().replace("redis://", "redis://:hunter2@");
    let error = service(&url).get_bytes("k").await.expect_err("the password is wrong");
    let denied = matches!(&error, CacheError::Backend(error) if error.kind == BackendErrorKind::Denied);
    assert!(denied, "{error:?}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
}

/// SC11: a full server refuses writes by kind, and still reads and invalidates.
#[tokio::test]
async fn a_full_server_says_so() {
    let server = RedisServer::start();
    let cache = service(&server.url());
    cache.set("k", &1, None).await.expect("set");
    server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = cache.set("k", &2, None).await.expect_err("no memory");
    let full = matches!(&error, CacheError::Backend(error) if error.kind == BackendErrorKind::OutOfMemory);
    assert!(full, "{error:?}");
    assert_eq!(cache.get("k").await.expect("get"), Some(1));
    assert!(!cache.redis().is_broken(), "a refusal is no outage");
}

/// C1, C7: everything on one link shares one connection.
#[tokio::test]
async fn one_link_is_one_connection() {
    let server = RedisServer::start();
    let link = RedisLink::lazy(RedisSettings::from_url(&server.url()).expect("a URL")).expect("a link");
    let bus = RedisBus::on(link.clone());
    let services: Vec<_> =
        (0..5).map(|_| Arc::new(RedisCacheService::on(bus.clone(), RedisCacheOptions::default()))).collect();
    let calls = services.iter().flat_map(|cache| (0..20).map(move |_| cache.get_bytes("k")));
    for answer in futures_util::future::join_all(calls).await {
        answer.expect("get");
    }
    assert_eq!(link.connections_made(), 1);
}
