//! The plain cache leaves alone what the services keep beside it: the numbers of groups, leases of refreshes, locks,
//! limits, presence and the bus.

use std::sync::Arc;
use std::time::Duration;

use app_builder::{AppService, AppServiceBuilder, MapSettings};
use cache_core::prelude::*;
use cache_core::{CacheError, Claim, KeyError, LeaseToken, ManualClock, Scope, Stamp, Ttl};
use cache_moka::MokaCacheService;
use conformance::cache::{CacheFixture, MAX_VALUE_BYTES, Time};

/// The whole suite of a cache, through what an application hands out.
async fn assembled() -> CacheFixture {
    let hand = ManualClock::new();
    let service = MokaCacheService::builder().clock(hand.clock()).max_value_bytes(MAX_VALUE_BYTES).build();
    let own = Arc::new(service.expect("the options work"));
    let app = AppServiceBuilder::new().settings(Arc::new(MapSettings::default())).cache_service(own);
    let app = app.build().await.expect("the parts fit");
    CacheFixture::new(app.cache_service(), Time::Manual(hand))
}

conformance::cache_suite!(assembled, crate::assembled);

async fn in_memory() -> AppService {
    let settings = MapSettings::new([("CACHE_BACKEND", "memory")]);
    AppServiceBuilder::new().settings(Arc::new(settings)).build().await.expect("an application")
}

const RESERVED: [&str; 8] = [
    "gen:all",
    "refresh:acme:rows:k",
    "lock:x",
    "{lock:x}:fence",
    "limit:api:ann",
    "presence:{acme}",
    "{presence:{acme}}:d",
    "cache:invalidate",
];

fn refused<T: std::fmt::Debug>(key: &str, answer: Result<T, CacheError>) {
    let error = answer.expect_err(key);
    assert!(matches!(error, CacheError::InvalidKey(KeyError::Reserved { .. })), "{key}: {error:?}");
}

/// No call of the plain cache, whatever it does, takes a key that begins with a reserved root.
#[tokio::test]
async fn reserved_keys_are_refused_by_every_call() {
    let app = in_memory().await;
    let cache = app.cache_service();
    let (ttl, lease) = (Ttl::For(Duration::from_secs(60)), Duration::from_secs(1));
    let token = LeaseToken::random();
    let (claim, stamp) = (Claim::lease(token), Stamp::of(&"x".into()));
    for key in RESERVED {
        refused(key, cache.get::<u32>(key).await);
        refused(key, cache.get_many::<u32>(&["fine", key]).await);
        refused(key, cache.set(key, &1, None).await);
        refused(key, cache.set_many(&[("fine", 1), (key, 1)], None).await);
        refused(key, cache.get_bytes(key).await);
        refused(key, cache.get_many_bytes(&["fine", key]).await);
        refused(key, cache.set_bytes(key, "x".into(), ttl).await);
        refused(key, cache.set_many_bytes(&[("fine", "x".into()), (key, "x".into())], ttl).await);
        refused(key, cache.invalidate(key).await);
        refused(key, cache.invalidate_many(&["fine", key]).await);
        refused(key, cache.invalidate_prefix(key).await);
        refused(key, cache.get_or_lease(key, token, lease).await);
        refused(key, cache.lease_over(key, &stamp, token, lease).await);
        refused(key, cache.take_lease(key, token, lease).await);
        refused(key, cache.fill(key, &claim, "x".into(), ttl).await);
        refused(key, cache.renew(key, &claim, lease).await);
        refused(key, cache.release(key, &claim).await);
    }
    assert_eq!(cache.get::<u32>("fine").await.expect("read"), None, "nothing of a refused call took place");
    for key in ["general:x", "locks:x", "lock", "acme:lock:x", "{x}", "org:acme", "token:t"] {
        cache.set(key, &1, None).await.expect(key);
        assert_eq!(cache.get::<u32>(key).await.expect(key), Some(1), "{key}");
    }
}

/// The caches of the same application need those keys, and have them.
#[tokio::test]
async fn the_caches_have_what_is_refused() {
    let app = in_memory().await;
    let rows: tenant_cache::TenantCache<u32, u32> = app
        .caches()
        .domain("rows")
        .scope(Scope::Global)
        .load(|key: u32| async move { Ok::<_, std::io::Error>(Some(key)) })
        .expect("a definition");
    assert_eq!(rows.get(&1).await.expect("loaded").as_deref(), Some(&1));
    rows.clear().await.expect("a number is written");
    rows.refresh(&1).await.expect("loaded");
    assert_eq!(rows.stats().far_failures, 0);
    assert!(app.cache_service().get_bytes("rows:1").await.expect("read").is_some());
}

#[cfg(feature = "redis")]
mod redis {
    use cache_core::LockOptions;
    use conformance::redis_server::RedisServer;

    use super::*;

    /// A lock is a lock, whatever was tried with the plain cache under its key.
    #[tokio::test]
    async fn a_lock_is_not_broken_by_the_plain_cache() {
        let server = RedisServer::start();
        let settings = MapSettings::new([("REDIS_URL", server.url())]);
        let app =
            AppServiceBuilder::new().settings(Arc::new(settings)).build().await.expect("an application");
        for key in ["lock:x", "{lock:x}:fence"] {
            refused(key, app.cache_service().set(key, &1, None).await);
        }
        let held = app.locks().acquire("x", &LockOptions::default()).await.expect("the lock is free");
        refused("lock:x", app.cache_service().invalidate("lock:x").await);
        assert!(app.locks().try_acquire("x", &LockOptions::default()).await.expect("answers").is_none());
        held.release().await.expect("released");
    }
}
