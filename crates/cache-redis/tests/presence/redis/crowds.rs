//! As many members as may be.

use std::time::Instant;

use cache_core::PresenceError;
use cache_core::prelude::*;
use cache_redis::RedisPresence;
use conformance::redis_server::RedisServer;

use crate::fleet::{MEMBERS, PAYLOADS, SECOND, acme, ann, instance, join, kept, seed, tenant, there};

/// H1: what one tenant can take is bounded. A full one says so; who is there may join again, who leaves or dies makes
/// room, and other tenants are not concerned.
#[tokio::test]
async fn a_full_tenant_says_so() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    seed(&server, "c", RedisPresence::MAX_MEMBERS, 60_000);
    for _ in 0..2 {
        let full = presence.join(&acme(), "new", &ann()).await;
        assert!(matches!(full, Err(PresenceError::Full { limit: RedisPresence::MAX_MEMBERS })), "{full:?}");
        assert!(!presence.heartbeat(&acme(), "new").await.expect("beaten"));
    }
    join(&presence, "c77").await;
    presence.join(&tenant("globex"), "new", &ann()).await.expect("joined");
    assert!(presence.leave(&acme(), "c5").await.expect("left"));
    join(&presence, "new").await;
    assert!(presence.join(&acme(), "newer", &ann()).await.is_err());
    seed(&server, "c", 1, -1);
    join(&presence, "newer").await;
    let most = RedisPresence::MAX_MEMBERS as i64;
    assert_eq!(kept(&server), (most, most));
}

/// H1: the dead do not make a tenant full, and joining never adds to what is kept beyond the limit.
#[tokio::test]
async fn the_dead_are_not_in_the_way() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    seed(&server, "dead", RedisPresence::MAX_MEMBERS, -1);
    join(&presence, "new").await;
    join(&presence, "dead100000").await;
    let most = RedisPresence::MAX_MEMBERS as i64;
    assert!(kept(&server).0 < most && kept(&server).1 < most, "{:?}", kept(&server));
    assert_eq!(there(&presence).await, ["dead100000", "new"]);
}

/// H1, C5: the largest listing there can be is complete and in order, page by page, so that others are answered
/// between.
#[tokio::test]
async fn a_full_tenant_is_listed() {
    let server = RedisServer::start();
    let presence = instance(&server.url());
    seed(&server, "c", RedisPresence::MAX_MEMBERS, 60_000);
    let other = instance(&server.url());
    let (listing, quick) = tokio::join!(there(&presence), async {
        let mut slowest = std::time::Duration::ZERO;
        for _ in 0..50 {
            let asked = Instant::now();
            assert_eq!(other.count(&acme()).await.expect("counted"), RedisPresence::MAX_MEMBERS as u64);
            slowest = slowest.max(asked.elapsed());
        }
        slowest
    });
    assert_eq!(listing.len(), RedisPresence::MAX_MEMBERS);
    assert!(listing.is_sorted_by(|a, b| a < b));
    assert!(quick < SECOND, "{quick:?}");
    // More than could ever join: somebody else's.
    seed(&server, "x", RedisPresence::MAX_MEMBERS + 2_000, 60_000);
    assert!(matches!(presence.list(&acme()).await, Err(PresenceError::Backend(_))));
    server.command(&["UNLINK", MEMBERS, PAYLOADS]);
}
