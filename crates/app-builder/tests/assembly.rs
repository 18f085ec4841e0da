//! What is assembled from which settings, and what the parts do together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use app_builder::{AppError, AppService, AppServiceBuilder, Backend, Coordination, MapSettings};
use cache_core::bus::BusHealth;
use cache_core::prelude::*;
use cache_core::{CacheService, ConcurrencyService, LockOptions, Quota, Scope, TenantId};
use cache_moka::MokaCacheService;
use concurrency::{LocalBus, LocalConcurrencyService};
use tenant_cache::TenantCache;

type Numbers = TenantCache<String, u64>;

async fn build(values: &[(&str, &str)]) -> Result<AppService, AppError> {
    let settings = MapSettings::new(values.iter().copied());
    AppServiceBuilder::new().settings(Arc::new(settings)).build().await
}

async fn in_memory() -> AppService {
    build(&[]).await.expect("no settings are needed")
}

fn numbers(app: &AppService, loaded: u64) -> Numbers {
    let domain = app.caches().domain("numbers").scope(Scope::Global);
    domain.load(move |_: String| async move { Ok::<_, std::io::Error>(Some(loaded)) }).expect("valid")
}

/// J1, J3: without `REDIS_URL` every service is there and works in this process.
#[tokio::test]
async fn without_redis_every_service_works_in_memory() {
    let app = in_memory().await;
    let cache = app.cache_service();
    cache.set("greeting", "hello", Some(300)).await.expect("stored");
    assert_eq!(cache.get::<String>("greeting").await.expect("read").as_deref(), Some("hello"));

    let held = app.locks().acquire("job", &LockOptions::default()).await.expect("free");
    let again = app.concurrency_service().try_acquire("job", &LockOptions::default()).await;
    assert!(again.expect("answers").is_none());
    held.release().await.expect("released");

    let quota = Quota::fixed_window("one", 1, Duration::from_secs(60));
    let limits = app.rate_limiter();
    assert!(limits.check(&quota, "k", 1).await.expect("checked").allowed);
    assert!(!limits.check(&quota, "k", 1).await.expect("checked").allowed);

    let tenant = TenantId::new("acme").expect("an id");
    assert_eq!(app.presence().count(&tenant).await.expect("counted"), 0);
    assert_eq!(numbers(&app, 7).get(&"n".into()).await.expect("loaded").as_deref(), Some(&7));
}

/// J4: memory is up with a latency, Redis is absent, and the bus of one process is always trusted.
#[tokio::test]
async fn health_in_memory_has_no_second_tier() {
    let health = in_memory().await.health().await;
    assert!(health.l1.up && health.l1.latency.is_some());
    assert_eq!(health.l2, None);
    assert_eq!((health.bus, health.coordination), (BusHealth::Trusted, Coordination::Process));
    assert!(!health.is_degraded());
}

/// I5, E11: the in-process backend is on the bus of the typed caches: what is invalidated by its key is gone
/// from memory too.
#[tokio::test]
async fn the_backend_and_the_typed_caches_share_a_bus() {
    let app = in_memory().await;
    let cache = numbers(&app, 1);
    let key = "n".to_owned();
    cache.get(&key).await.expect("loaded");
    assert!(cache.peek(&key).expect("scoped").is_some());
    app.cache_service().invalidate("numbers:n").await.expect("invalidated");
    assert!(cache.peek(&key).expect("scoped").is_none());
}

/// J1: settings reach the parts.
#[tokio::test]
async fn settings_reach_the_parts() {
    let app = build(&[
        ("CACHE_NEAR_TTL", "2s"),
        ("CACHE_NEAR_CAPACITY", "5"),
        ("RATE_LIMIT_API", "7/1s"),
        ("CACHE_TTL", "50ms"),
    ])
    .await
    .expect("valid");
    let policy = numbers(&app, 1).policy().clone();
    assert_eq!((policy.near_ttl, policy.capacity), (Duration::from_secs(2), 5));
    assert_eq!(app.quotas().api.limit, 7);
    app.cache_service().set("k", &1, None).await.expect("stored");
    eventually("the default life has passed", || async {
        app.cache_service().get::<u8>("k").await.expect("read").is_none()
    })
    .await;
}

/// J1: each part can be replaced by one's own.
#[tokio::test]
async fn each_part_can_be_replaced() {
    let bus = Arc::new(LocalBus::new());
    let cache: Arc<dyn CacheService> = Arc::new(MokaCacheService::default());
    let all: Arc<dyn ConcurrencyService> = Arc::new(LocalConcurrencyService::default());
    let other = Arc::new(LocalConcurrencyService::default());
    let app = AppServiceBuilder::new()
        .settings(Arc::new(MapSettings::default()))
        .cache_service(Arc::clone(&cache))
        .bus(bus)
        .concurrency_service(Arc::clone(&all))
        .rate_limiter(other.clone())
        .build()
        .await
        .expect("the parts fit");
    app.cache_service().set("k", &1, None).await.expect("stored");
    assert_eq!(cache.get::<u8>("k").await.expect("read"), Some(1), "it is one's own");
    let _held = all.acquire("job", &LockOptions::default()).await.expect("free");
    assert!(app.locks().try_acquire("job", &LockOptions::default()).await.expect("answers").is_none());
    let quota = Quota::fixed_window("one", 1, Duration::from_secs(60));
    assert!(app.rate_limiter().check(&quota, "k", 1).await.expect("checked").allowed);
    assert!(
        !RateLimits::check(&*other, &quota, "k", 1).await.expect("checked").allowed,
        "it is the other one"
    );
    assert!(RateLimits::check(&*all, &quota, "k", 1).await.expect("checked").allowed);
    assert_eq!(app.health().await.coordination, Coordination::Own);
}

/// J1: setting a part twice is an error that names it.
#[tokio::test]
async fn setting_a_part_twice_is_an_error_that_names_it() {
    let cache = || -> Arc<dyn CacheService> { Arc::new(MokaCacheService::default()) };
    let concurrency = || Arc::new(LocalConcurrencyService::default());
    let settings = || Arc::new(MapSettings::default());
    let new = AppServiceBuilder::new;
    for (builder, part) in [
        (new().cache_service(cache()).cache_service(cache()), "cache_service"),
        (new().bus(Arc::new(LocalBus::new())).bus(Arc::new(LocalBus::new())), "bus"),
        (new().concurrency_service(concurrency()).concurrency_service(concurrency()), "concurrency_service"),
        (new().rate_limiter(concurrency()).rate_limiter(concurrency()), "rate_limiter"),
        (new().presence(concurrency()).presence(concurrency()), "presence"),
        (new().settings(settings()).app_settings(app_builder::AppSettings::in_memory()), "settings"),
        (new().cache_defaults(Default::default()).cache_defaults(Default::default()), "cache_defaults"),
    ] {
        match builder.build().await {
            Err(AppError::SetTwice { part: named }) => assert_eq!(named, part),
            other => panic!("{part}: {other:?}"),
        }
    }
}

/// J1: a cache on one bus and another bus beside it would leave this process deaf: refused.
#[tokio::test]
async fn a_cache_on_another_bus_is_refused() {
    let cache = MokaCacheService::builder().bus(Arc::new(LocalBus::new())).build().expect("valid");
    let builder = AppServiceBuilder::new().settings(Arc::new(MapSettings::default()));
    let built = builder.cache_service(Arc::new(cache)).bus(Arc::new(LocalBus::new())).build().await;
    assert!(matches!(built, Err(AppError::Parts(_))), "{built:?}");
}

/// J3: shutting down twice is fine, and reading goes on.
#[tokio::test]
async fn shutdown_is_idempotent() {
    let app = in_memory().await;
    app.cache_service().set("k", &1, None).await.expect("stored");
    app.shutdown().await;
    app.shutdown().await;
    assert_eq!(app.cache_service().get::<u8>("k").await.expect("read"), Some(1));
}

/// J5: asking for Redis in a build without it is an error that says so.
#[cfg(not(feature = "redis"))]
#[tokio::test]
async fn a_build_without_redis_says_so() {
    let built = build(&[("REDIS_URL", "redis://localhost")]).await;
    assert!(matches!(built, Err(AppError::NoRedis { setting: "REDIS_URL" })), "{built:?}");
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;
    use conformance::redis_server::RedisServer;

    async fn on(server: &RedisServer, more: &[(&str, &str)]) -> Result<AppService, AppError> {
        let prefix = format!("t{}:", std::process::id());
        let url = server.url();
        let mut values = vec![("REDIS_URL", url.as_str()), ("REDIS_KEY_PREFIX", &prefix)];
        values.extend(more);
        build(&values).await
    }

    /// J1, J4: with `REDIS_URL` values live in Redis, and health tells its answer time.
    #[tokio::test]
    async fn with_redis_two_applications_share_values() {
        let server = RedisServer::start();
        let (one, two) = (on(&server, &[]).await.expect("there"), on(&server, &[]).await.expect("there"));
        one.cache_service().set("k", &1, None).await.expect("stored");
        assert_eq!(two.cache_service().get::<u8>("k").await.expect("read"), Some(1));
        let health = one.health().await;
        let l2 = health.l2.expect("there is a second tier");
        assert!(health.l1.up && l2.up && l2.latency.is_some());
        assert!(one.redis().is_some());
        assert!(matches!(one.settings().backend, Backend::Redis(_)));
        let memory = on(&server, &[("CACHE_BACKEND", "memory")]).await.expect("in memory");
        assert_eq!(memory.cache_service().get::<u8>("k").await.expect("read"), None);
        assert!(memory.redis().is_none() && memory.health().await.l2.is_none());
    }

    /// E11, L3: what one application invalidates is gone from the other's memory.
    #[tokio::test]
    async fn an_invalidation_reaches_the_other_application() {
        let server = RedisServer::start();
        let (one, two) = (on(&server, &[]).await.expect("there"), on(&server, &[]).await.expect("there"));
        let (writer, reader) = (numbers(&one, 2), numbers(&two, 1));
        let key = "n".to_owned();
        eventually("the reader's memory is trusted and holds the value", || async {
            reader.get(&key).await.expect("loaded");
            reader.peek(&key).expect("scoped").is_some()
        })
        .await;
        writer.invalidate(&key).await.expect("invalidated");
        eventually("the reader has forgotten", || async { reader.peek(&key).expect("scoped").is_none() })
            .await;
    }

    /// J2: Redis away at the start degrades, values come from the origin, and it recovers by itself.
    #[tokio::test]
    async fn redis_away_at_the_start_degrades_and_recovers() {
        let mut server = RedisServer::start();
        server.kill();
        let app = on(&server, &[]).await.expect("it starts without Redis");
        let health = app.health().await;
        assert!(health.is_degraded() && health.l2.is_some_and(|l2| !l2.up));
        let cache = numbers(&app, 3);
        assert_eq!(cache.get(&"n".into()).await.expect("from the origin").as_deref(), Some(&3));
        server.restart();
        eventually("it has recovered by itself", || async { !app.health().await.is_degraded() }).await;
        app.cache_service().set("k", &1, None).await.expect("stored");
    }

    /// Memory that may not be served any more is a degradation, although Redis answers; memory that may not be served
    /// yet is none.
    #[tokio::test]
    async fn lost_trust_degrades_although_redis_answers() {
        let server = RedisServer::start();
        let app = on(&server, &[]).await.expect("there");
        assert!(!app.health().await.is_degraded(), "it begins");
        let bus = async || app.health().await.bus;
        eventually("trust", || async { bus().await == BusHealth::Trusted }).await;
        // What is invalidated cannot be announced: nothing in memory counts until it is.
        server.command(&["ACL", "SETUSER", "default", "-incr"]);
        app.cache_service().invalidate("k").await.expect_err("the script fails");
        let health = app.health().await;
        assert!(health.bus != BusHealth::Trusted && health.is_degraded(), "{health:?}");
        assert!(health.l2.is_some_and(|l2| l2.up), "Redis answers");
        server.command(&["ACL", "SETUSER", "default", "+incr"]);
        eventually("it has recovered by itself", || async { !app.health().await.is_degraded() }).await;
        assert_eq!(bus().await, BusHealth::Trusted);
    }

    /// J2: with `fail` it does not start, and says where Redis was expected, without the password.
    #[tokio::test]
    async fn redis_away_at_the_start_fails_when_asked_to() {
        let mut server = RedisServer::start();
        server.kill();
        let url = server.url().replace("redis://", "redis://:hunter2@");
        let built = build(&[("REDIS_URL", &url), ("REDIS_ON_UNAVAILABLE", "fail")]).await;
        let error = built.expect_err("Redis is away");
        assert!(matches!(error, AppError::RedisUnavailable { .. }), "{error:?}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(&server.address().port().to_string()), "{text}");
        assert!(text.contains("REDIS_ON_UNAVAILABLE") && !text.contains("hunter2"), "{text}");
    }

    /// C4: a deployment that cannot be served is refused by its setting's name.
    #[tokio::test]
    async fn a_deployment_that_cannot_be_served_is_refused_by_name() {
        let nodes = ("REDIS_NODES", "a:1,b:2");
        let sentinel = [nodes, ("REDIS_MODE", "sentinel"), ("REDIS_SENTINEL_MASTER", "main")];
        for values in [&[nodes, ("REDIS_MODE", "cluster")][..], &sentinel] {
            let error = build(values).await.expect_err("not served");
            assert!(error.to_string().starts_with("REDIS_MODE: "), "{error}");
        }
    }

    /// C4: a URL that is not understood is refused by its setting's name, without the password.
    #[tokio::test]
    async fn a_bad_url_is_refused_by_name() {
        let error = build(&[("REDIS_URL", "http://:hunter2@h")]).await.expect_err("no Redis URL");
        let text = format!("{error} {error:?}");
        assert!(text.starts_with("REDIS_URL: ") && !text.contains("hunter2"), "{text}");
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within 15 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
