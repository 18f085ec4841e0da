//! A fleet of two instances on a real Redis: what is changed at one is seen by the other, and what happens while
//! Redis is away. Every test is in a module `redis`, for it needs one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod redis {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use cache_core::bus::BusHealth;
    use cache_core::{InvalidationBus, RequestContext};
    use cache_redis::{BusPolicy, RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
    use conformance::redis_server::RedisServer;
    use conformance::wait::eventually;
    use tenant_cache::{Caches, RequestScope, Source, TenantCache};

    use crate::support::{Origin, of, plain, tenant, versions};

    const TRUST_FOR: Duration = Duration::from_millis(600);

    struct Instance {
        bus: Arc<RedisBus>,
        caches: Caches,
        cache: TenantCache<String, u64>,
    }

    impl Instance {
        fn on(server: &RedisServer, origin: &Origin) -> Self {
            let settings = RedisSettings::from_url(&server.url()).unwrap();
            let policy =
                BusPolicy::default().with_heartbeat(Duration::from_millis(100)).with_trust_for(TRUST_FOR);
            let bus = RedisBus::with_policy(RedisLink::lazy(settings).unwrap(), policy);
            let far = Arc::new(RedisCacheService::on(bus.clone(), RedisCacheOptions::default()));
            let caches = Caches::builder().far(far).build().unwrap();
            let cache = versions(&caches, origin);
            Self { bus, caches, cache }
        }

        async fn get(&self) -> (Option<u64>, Source) {
            let found = of("acme", self.cache.lookup(&"k".to_owned())).await.unwrap();
            (plain(found.value), found.source)
        }
    }

    async fn fleet(server: &RedisServer, origin: &Origin) -> [Instance; 2] {
        let fleet = [Instance::on(server, origin), Instance::on(server, origin)];
        for instance in &fleet {
            trusted(instance).await;
        }
        fleet
    }

    async fn trusted(instance: &Instance) {
        eventually("trust", async || instance.bus.state().health == BusHealth::Trusted).await;
    }

    /// E2, E11, SD1: near, far and origin on a real Redis, and every kind of invalidation seen by the other
    /// instance; one's own at once.
    #[tokio::test]
    async fn a_change_at_one_instance_is_seen_by_the_other() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let [here, there] = fleet(&server, &origin).await;
        for (version, how) in
            ["key", "insert", "refresh", "all", "clear", "prefix", "by text"].into_iter().enumerate()
        {
            let (old, new) = (version as u64 * 2 + 1, version as u64 * 2 + 2);
            origin.commit("k", old);
            of("acme", here.cache.invalidate(&"k".to_owned())).await.unwrap();
            eventually("the old version", async || there.get().await.0 == Some(old)).await;
            assert_eq!(here.get().await.0, Some(old), "{how}");
            assert_eq!(here.get().await.1, Source::Near, "{how}");
            // The message may come after the read that found the new far value, and take it from memory again.
            eventually("memory", async || there.get().await.1 == Source::Near).await;
            origin.commit("k", new);
            let key = "k".to_owned();
            of("acme", async {
                match how {
                    "key" => here.cache.invalidate(&key).await.unwrap(),
                    "insert" => here.cache.insert(&key, new).await.unwrap(),
                    "refresh" => drop(here.cache.refresh(&key).await.unwrap()),
                    "all" => here.cache.invalidate_all().await.unwrap(),
                    "clear" => here.cache.clear().await.unwrap(),
                    "prefix" => drop(here.caches.invalidate_prefix("acme:").await.unwrap()),
                    _ => here.caches.invalidate_keys(&["acme:rows:k"]).await.unwrap(),
                }
            })
            .await;
            assert_eq!(here.get().await.0, Some(new), "{how}: one's own is seen at once");
            let told = Instant::now();
            eventually("the new version", async || there.get().await.0 == Some(new)).await;
            assert!(told.elapsed() < TRUST_FOR, "{how} took {:?}", told.elapsed());
        }
    }

    /// I1: any client can publish a plain key.
    #[tokio::test]
    async fn a_plain_key_from_anybody_is_heard() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let [here, _] = fleet(&server, &origin).await;
        origin.commit("k", 1);
        here.get().await;
        assert_eq!(here.get().await, (Some(1), Source::Near));
        server.command(&["DEL", "acme:rows:k"]);
        server.command(&["PUBLISH", "cache:invalidate", "acme:rows:k"]);
        origin.commit("k", 2);
        eventually("the new version", async || here.get().await.0 == Some(2)).await;
    }

    /// SE1, SE7, P3: a load that another instance invalidates is stored nowhere.
    #[tokio::test]
    async fn a_load_overtaken_by_another_instance_is_stored_nowhere() {
        let (server, origin) = (RedisServer::start(), Origin::gated());
        let [here, there] = fleet(&server, &origin).await;
        origin.commit("k", 1);
        let cache = here.cache.clone();
        let load = tokio::spawn(async move { plain(of("acme", cache.get(&"k".to_owned())).await.unwrap()) });
        origin.at_gate(1).await;
        origin.commit("k", 2);
        of("acme", there.cache.invalidate(&"k".to_owned())).await.unwrap();
        origin.release(1);
        assert_eq!(load.await.unwrap(), Some(1), "its caller came before");
        assert_eq!(here.cache.stats().refused_fills, 1);
        origin.release(2);
        assert_eq!(here.get().await.0, Some(2));
        assert_eq!(there.get().await.0, Some(2));
    }

    /// SA12, P4: ten instances with twenty callers each run one load of a cold key.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_fleet_loads_a_cold_key_once() {
        let (server, origin) = (RedisServer::start(), Origin::gated());
        origin.commit("k", 1);
        let fleet: Vec<_> = (0..10).map(|_| Instance::on(&server, &origin)).collect();
        let callers: Vec<_> = fleet
            .iter()
            .flat_map(|instance| (0..20).map(|_| instance.cache.clone()))
            .map(|cache| {
                tokio::spawn(async move { plain(of("acme", cache.get(&"k".to_owned())).await.unwrap()) })
            })
            .collect();
        origin.at_gate(1).await;
        origin.release(1);
        for caller in callers {
            assert_eq!(caller.await.unwrap(), Some(1));
        }
        assert_eq!(origin.loads(), 1);
    }

    /// P2, SC10, SF3: while Redis is frozen every read is answered, from memory within the bound and from the
    /// origin after it; a change is seen within the bound; afterwards everything comes back by itself.
    #[tokio::test]
    async fn a_frozen_redis_costs_freshness_no_more_than_the_bound() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let [here, there] = fleet(&server, &origin).await;
        origin.commit("k", 1);
        here.get().await;
        there.get().await;
        server.pause();
        origin.commit("k", 2);
        let invalidated = of("acme", here.cache.invalidate(&"k".to_owned())).await;
        assert!(invalidated.is_err(), "P6: the caller is told");
        assert_eq!(here.get().await.0, Some(2), "this instance forgot it all the same");
        let changed = Instant::now();
        eventually("the new version", async || there.get().await.0 == Some(2)).await;
        // The bound, and one call that Redis did not answer.
        assert!(changed.elapsed() < TRUST_FOR + Duration::from_secs(1), "{:?}", changed.elapsed());
        let asked = Instant::now();
        for _ in 0..5 {
            assert_eq!(there.get().await, (Some(2), Source::Origin));
        }
        assert!(asked.elapsed() < Duration::from_secs(4), "soon at once: {:?}", asked.elapsed());
        server.resume();
        trusted(&here).await;
        trusted(&there).await;
        eventually("memory", async || there.get().await.1 == Source::Near).await;
        assert_eq!((here.get().await.0, there.get().await.0), (Some(2), Some(2)));
    }

    /// SF1: what changed while the subscription was cut is not served after it is back.
    #[tokio::test]
    async fn a_change_during_a_cut_subscription_is_not_missed() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let [here, there] = fleet(&server, &origin).await;
        for version in 1..20 {
            origin.commit("k", version);
            of("acme", here.cache.invalidate(&"k".to_owned())).await.unwrap();
            eventually("the version", async || there.get().await.0 == Some(version)).await;
            server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        trusted(&there).await;
        assert_eq!(there.get().await.0, Some(19));
    }

    /// D4, P5: two tenants, and two users, on one Redis.
    #[tokio::test]
    async fn scopes_are_apart_on_redis_too() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let instance = Instance::on(&server, &origin);
        trusted(&instance).await;
        for (version, name) in ["acme", "globex", "a:rows", "org"].into_iter().enumerate() {
            origin.commit("k", version as u64);
            let context = RequestContext::new(tenant(name));
            let found = context.scope(instance.cache.get(&"k".to_owned())).await.unwrap();
            assert_eq!(plain(found), Some(version as u64), "{name}");
        }
        let keys =
            server.command(&["EXISTS", "acme:rows:k", "globex:rows:k", "a%3Arows:rows:k", "%6Frg:rows:k"]);
        assert_eq!(keys, conformance::resp::Reply::Integer(4));
    }
}
