//! Locks, limits and presence as an application with Redis gets them: the suites over the whole assembly, and what
//! happens without Redis.
#![cfg(feature = "redis")]

use std::sync::Arc;

use app_builder::{AppService, AppServiceBuilder, Coordination, MapSettings};
use cache_core::{LockOptions, Member, RateLimitError, TenantId, UserId};
use conformance::rate_limit::RateLimitFixture;
use conformance::redis_server::RedisServer;
use conformance::wait::eventually;

async fn application(url: &str) -> AppService {
    let settings = MapSettings::new([("REDIS_URL", url)]);
    AppServiceBuilder::new().settings(Arc::new(settings)).build().await.expect("an application")
}

async fn limits() -> RateLimitFixture {
    let url = RedisServer::shared_url();
    let (one, two) = (application(&url).await, application(&url).await);
    RateLimitFixture::new(one.rate_limiter()).with_peer(two.rate_limiter())
}

mod redis {
    use super::*;

    conformance::rate_limit_suite!(assembled, crate::limits);

    /// H1, J1, F1: with Redis two applications share presence and locks, and say so.
    #[tokio::test]
    async fn with_redis_two_applications_share_presence_and_locks() {
        let server = RedisServer::start();
        let (one, two) = (application(&server.url()).await, application(&server.url()).await);
        let acme = TenantId::new("acme").expect("an id");
        let ann = Member { user_id: UserId::new("ann").expect("an id"), connected_at: 7 };
        one.presence().join(&acme, "c1", &ann).await.expect("joined");
        let there = two.presence().list(&acme).await.expect("listed");
        assert_eq!((there.len(), &there[0].member), (1, &ann));
        assert!(two.presence().leave(&acme, "c1").await.expect("left"));
        assert_eq!(one.concurrency_service().count(&acme).await.expect("counted"), 0);
        let held = one.locks().acquire("k", &LockOptions::default()).await.expect("the lock");
        assert!(two.locks().try_acquire("k", &LockOptions::default()).await.expect("asked").is_none());
        held.release().await.expect("released");
        assert_eq!(one.health().await.coordination, Coordination::Fleet);
    }

    /// G4, SH6: without Redis the presets `auth` and `mfa` refuse, `api` and `mutation` are counted in this process;
    /// with it again all is counted there, and what was denied by it before still is.
    #[tokio::test]
    async fn without_redis_each_preset_does_what_it_says() {
        let mut server = RedisServer::start();
        let app = application(&server.url()).await;
        let (limits, quotas) = (app.rate_limiter(), app.quotas().clone());
        for _ in 0..5 {
            assert!(limits.check(&quotas.mfa, "ann", 1).await.expect("counted").allowed);
        }
        assert!(!limits.check(&quotas.mfa, "ann", 1).await.expect("counted").allowed);
        server.kill();
        for quota in [&quotas.auth, &quotas.mfa] {
            let error = limits.check(quota, "bob", 1).await.expect_err("it fails closed");
            assert!(matches!(error, RateLimitError::Unavailable { .. }), "{error:?}");
        }
        assert!(!limits.check(&quotas.mfa, "ann", 1).await.expect("remembered").allowed);
        let mut passed = 0;
        for _ in 0..25 {
            passed += u32::from(limits.check(&quotas.mutation, "ann", 5).await.expect("local").allowed);
        }
        assert!((20..=21).contains(&passed), "{passed} of the preset's 20 at once");
        assert!(limits.check(&quotas.api, "ann", 1).await.expect("local").allowed);
        server.restart();
        let counted = async || limits.check(&quotas.auth, "bob", 1).await.is_ok();
        eventually("Redis", counted).await;
        assert!(server.command(&["KEYS", "limit:window:auth:bob"]).items().len() == 1);
    }
}
