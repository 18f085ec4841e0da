//! What presence keeps on the server, and for how long.

use std::net::TcpListener;
use std::time::Duration;

use cache_core::TenantId;
use cache_core::prelude::*;
use cache_redis::{RedisLink, RedisPresence, RedisSettings};
use conformance::redis_server::RedisServer;
use conformance::resp::Reply;

use crate::fleet::{
    MEMBERS, PAYLOADS, SECOND, acme, ann, end_of, instance, instance_for, join, kept, now, number, seed,
    tenant, there, until,
};

fn prefixed(server: &RedisServer, prefix: &str) -> RedisPresence {
    let settings =
        RedisSettings::from_url(&server.url()).and_then(|settings| settings.with_key_prefix(prefix));
    RedisPresence::on(RedisLink::lazy(settings.expect("settings")).expect("a link"))
}

fn keys(server: &RedisServer) -> Vec<String> {
    let mut keys: Vec<_> = server.command(&["KEYS", "*"]).items().iter().filter_map(Reply::text).collect();
    keys.sort();
    keys
}

/// H1: ten thousand tenants that nobody uses any more leave not one key behind.
#[tokio::test]
async fn idle_tenants_leave_no_key() {
    let server = RedisServer::start();
    let presence = instance_for(&server.url(), Duration::from_millis(200));
    let tenants: Vec<TenantId> = (0..10_000).map(|n| tenant(&n.to_string())).collect();
    for some in tenants.chunks(500) {
        let joins = some.iter().map(|tenant| async {
            presence.join(tenant, "c", &ann()).await.expect("joined");
        });
        futures_util::future::join_all(joins).await;
    }
    until("the end of all keys", || number(&server, &["DBSIZE"]) == 0).await;
}

/// H1: when the last one leaves, nothing is left at once.
#[tokio::test]
async fn the_last_one_leaves_no_key() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    for connection in ["c1", "c2"] {
        join(&presence, connection).await;
    }
    assert_eq!(keys(&server), [MEMBERS, PAYLOADS]);
    for connection in ["c1", "c2"] {
        assert!(presence.leave(&acme(), connection).await.expect("left"));
    }
    assert_eq!(keys(&server), [""; 0]);
}

/// H1: the keys live for two TTLs after the last join or heartbeat, and reading does not prolong them.
#[tokio::test]
async fn joins_and_heartbeats_keep_the_keys() {
    let server = RedisServer::start();
    let presence = instance_for(&server.url(), 60 * SECOND);
    let lives = || [MEMBERS, PAYLOADS].map(|key| number(&server, &["PTTL", key]));
    let shorten = || {
        for key in [MEMBERS, PAYLOADS] {
            server.command(&["PEXPIRE", key, "30000"]);
        }
    };
    let full = |life: &i64| (110_000..=120_000).contains(life);
    join(&presence, "c").await;
    assert!(lives().iter().all(full), "{:?}", lives());
    shorten();
    assert!(presence.heartbeat(&acme(), "c").await.expect("beaten"));
    assert!(lives().iter().all(full), "{:?}", lives());
    shorten();
    join(&presence, "other").await;
    assert!(lives().iter().all(full), "{:?}", lives());
    shorten();
    assert_eq!(there(&presence).await, ["c", "other"]);
    assert!(presence.leave(&acme(), "other").await.expect("left"));
    assert!(!presence.heartbeat(&acme(), "other").await.expect("beaten"));
    assert!(lives().iter().all(|life| *life <= 30_000), "{:?}", lives());
}

/// H1: an instance that gives a shorter TTL, as while an option is being changed, does not end the members of others.
#[tokio::test]
async fn a_shorter_ttl_ends_only_its_own() {
    let server = RedisServer::start();
    let (long, short) =
        (instance_for(&server.url(), 60 * SECOND), instance_for(&server.url(), Duration::from_millis(50)));
    join(&long, "long").await;
    join(&short, "short").await;
    let _ = short.heartbeat(&acme(), "short").await.expect("asked");
    for key in [MEMBERS, PAYLOADS] {
        assert!(number(&server, &["PTTL", key]) > 100_000, "{key}");
    }
    until("its end", || now(&server) >= end_of(&server, "short")).await;
    assert_eq!(there(&long).await, ["long"]);
}

/// H1: each join and each heartbeat sweeps a hundred dead members at most, of both keys; listing and counting sweep
/// none.
#[tokio::test]
async fn the_dead_are_swept_bit_by_bit() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    seed(&server, "dead", 250, -1);
    assert_eq!(there(&presence).await, [""; 0]);
    assert_eq!(presence.count(&acme()).await.expect("counted"), 0);
    assert_eq!(kept(&server), (250, 250));
    join(&presence, "c").await;
    assert_eq!(kept(&server), (151, 151));
    assert!(presence.heartbeat(&acme(), "c").await.expect("beaten"));
    assert_eq!(kept(&server), (51, 51));
    join(&presence, "d").await;
    assert_eq!(kept(&server), (2, 2));
    assert_eq!(there(&presence).await, ["c", "d"]);
}

/// H1: a server that is short of memory may evict one of the two keys; who lives is then asked to join again, and
/// nothing stays for ever.
#[tokio::test]
async fn one_key_without_the_other_is_mended() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    for evicted in [MEMBERS, PAYLOADS] {
        for connection in ["c1", "c2", "c3"] {
            join(&presence, connection).await;
        }
        server.command(&["DEL", evicted]);
        assert_eq!(there(&presence).await, [""; 0], "{evicted}");
        assert!(!presence.heartbeat(&acme(), "c1").await.expect("beaten"), "{evicted}");
        join(&presence, "c1").await;
        assert!(presence.heartbeat(&acme(), "c1").await.expect("beaten"), "{evicted}");
        assert_eq!(there(&presence).await, ["c1"], "{evicted}");
        assert_eq!(number(&server, &["HLEN", PAYLOADS]), 1, "{evicted}");
        server.command(&["DEL", MEMBERS, PAYLOADS]);
    }
}

/// C8: deployments with different prefixes share a server and nothing else; the keys are called as is documented.
#[tokio::test]
async fn prefixes_keep_deployments_apart() {
    let server = RedisServer::start();
    let (blue, green) = (prefixed(&server, "blue:"), prefixed(&server, "green:"));
    join(&blue, "c").await;
    assert_eq!(there(&green).await, [""; 0]);
    assert!(!green.heartbeat(&acme(), "c").await.expect("beaten"));
    assert!(!green.leave(&acme(), "c").await.expect("left"));
    assert_eq!(keys(&server), ["blue:presence:{acme}", "blue:presence:{acme}:d"]);
    assert_eq!(there(&blue).await, ["c"]);
    let payload = server.command(&["HGET", "blue:presence:{acme}:d", "c"]);
    assert_eq!(payload.text().as_deref(), Some(r#"{"user_id":"ann","connected_at":7}"#));
}

/// C6, F13 of COHERENCE: whatever a tenant is called, its two keys are in one slot; a cluster refuses scripts that
/// touch two.
#[tokio::test]
async fn the_keys_of_a_tenant_are_in_one_slot() {
    let bus =
        TcpListener::bind(("127.0.0.1", 0)).expect("a free port").local_addr().expect("an address").port();
    let server = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()]);
    server.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    until("the cluster", || {
        server.info("cluster", "cluster_enabled").as_deref() == Some("1")
            && server
                .command(&["CLUSTER", "INFO"])
                .text()
                .is_some_and(|info| info.contains("cluster_state:ok"))
    })
    .await;
    let apart = server.command(&["EVAL", "return redis.call('GET', KEYS[1])", "2", "a", "b"]);
    assert!(matches!(apart, Reply::Error(_)), "it is a cluster: {apart:?}");
    for prefix in ["", "staging:"] {
        let presence = prefixed(&server, prefix);
        for name in ["plain", "{a}b", "}x", "{", "}", "{}", "}{", "a{b}c{d}", "%7B", "é{", ":d", "a}:d"] {
            let tenant = tenant(name);
            presence.join(&tenant, "c", &ann()).await.expect("joined");
            assert!(presence.heartbeat(&tenant, "c").await.expect("beaten"));
            assert_eq!(presence.list(&tenant).await.expect("listed").len(), 1);
            assert_eq!(presence.count(&tenant).await.expect("counted"), 1);
            let slots: Vec<_> =
                keys(&server).iter().map(|key| number(&server, &["CLUSTER", "KEYSLOT", key])).collect();
            assert!(slots.len() == 2 && slots[0] == slots[1], "{name}: {:?}", keys(&server));
            assert!(presence.leave(&tenant, "c").await.expect("left"));
        }
    }
}

/// C6, SC8: each operation is one command, so one round trip; a listing one for about each thousand.
#[tokio::test]
async fn an_operation_is_one_round_trip() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    let calls = |command: &str| -> u64 {
        let stats = server.info("commandstats", &format!("cmdstat_{command}")).unwrap_or_default();
        let calls = stats.strip_prefix("calls=").and_then(|stats| stats.split(',').next());
        calls.map_or(0, |calls| calls.parse().expect("a number"))
    };
    let asked = || calls("evalsha") + calls("eval");
    let tenant = acme();
    let mut costs = Vec::new();
    // The first time, the server is told each script.
    for _ in 0..2 {
        costs.clear();
        for operation in 0..6 {
            let before = asked();
            match operation {
                0 => join(&presence, "c").await,
                1 => drop(presence.heartbeat(&tenant, "c").await.expect("beaten")),
                2 => drop(presence.heartbeat_all(&tenant, &["c", "d", "e"]).await.expect("beaten")),
                3 => drop(presence.list(&tenant).await.expect("listed")),
                4 => drop(presence.count(&tenant).await.expect("counted")),
                _ => drop(presence.leave(&tenant, "c").await.expect("left")),
            }
            costs.push(asked() - before);
        }
    }
    assert_eq!(costs, [1; 6]);
    seed(&server, "c", 5_000, 60_000);
    let before = asked();
    assert_eq!(there(&presence).await.len(), 5_000);
    assert!((5..=7).contains(&(asked() - before)), "{} pages", asked() - before);
}
