//! Messages that one of two instances misses, each in its own way, on a real Redis: what changed meanwhile is not
//! served once memory is trusted again, nor while it is not. Every test is in a module `redis`, for it needs one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod redis {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use cache_core::bus::BusHealth;
    use cache_core::{Clock, InvalidationBus};
    use cache_redis::{BusPolicy, RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
    use conformance::proxy::{Direction, Gate, Proxy};
    use conformance::redis_server::RedisServer;
    use conformance::wait::eventually;
    use tenant_cache::{Caches, Source, TenantCache};

    use crate::support::{Origin, of, plain, versions};

    const HEARTBEAT: Duration = Duration::from_millis(100);
    const TRUST_FOR: Duration = Duration::from_millis(600);

    /// An instance with a link of its own that can be broken.
    struct Instance {
        bus: Arc<RedisBus>,
        cache: TenantCache<String, u64>,
        link: Proxy,
        _caches: Caches,
    }

    impl Instance {
        async fn on(server: &RedisServer, origin: &Origin) -> Self {
            let link = Proxy::start(server.address()).await;
            let settings = RedisSettings::from_url(&format!("redis://{}", link.address())).unwrap();
            let policy = BusPolicy::default().with_heartbeat(HEARTBEAT).with_trust_for(TRUST_FOR);
            let bus = RedisBus::with_policy(RedisLink::lazy(settings).unwrap(), policy);
            let far = Arc::new(RedisCacheService::on(bus.clone(), RedisCacheOptions::default()));
            let caches = Caches::builder().far(far).build().unwrap();
            let cache = versions(&caches, origin);
            Self { bus, cache, link, _caches: caches }
        }

        async fn get(&self) -> (Option<u64>, Source) {
            let found = of("acme", self.cache.lookup(&"k".to_owned())).await.unwrap();
            (plain(found.value), found.source)
        }

        async fn invalidate(&self) {
            of("acme", self.cache.invalidate(&"k".to_owned())).await.unwrap();
        }

        fn trusted(&self) -> bool {
            self.bus.trust().near(Clock::system().coarse())
        }

        /// Memory is trusted, and holds the row.
        async fn settled(&self) {
            eventually("the row in memory", async || self.healthy() && self.get().await.1 == Source::Near)
                .await;
        }

        fn healthy(&self) -> bool {
            self.bus.state().health == BusHealth::Trusted
        }
    }

    /// Two instances with the first version of the row in memory.
    async fn fleet(server: &RedisServer, origin: &Origin) -> [Instance; 2] {
        let fleet = [Instance::on(server, origin).await, Instance::on(server, origin).await];
        origin.commit("k", 1);
        for instance in &fleet {
            instance.settled().await;
        }
        fleet
    }

    /// SF1, I3: the subscription is cut and cannot come back while the row changes: the message goes to nobody. The
    /// old row is not served once there is a subscription again.
    #[tokio::test]
    async fn what_is_missed_between_two_subscriptions_is_not_served() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let [here, there] = fleet(&server, &origin).await;
        let reconnects = there.bus.state().reconnects;
        there.link.refuse().await;
        there.link.cut().await;
        eventually("the end of the subscription", async || there.bus.state().health == BusHealth::Down).await;
        origin.commit("k", 2);
        here.invalidate().await;
        assert_eq!(there.bus.state().received, 0, "nobody told it");
        there.link.heal().await;
        eventually("a new subscription", async || there.bus.state().reconnects > reconnects).await;
        there.settled().await;
        assert_eq!(there.get().await, (Some(2), Source::Near));
    }

    /// SF2, I4: one message is lost while the link is up: the next beat shows the gap, and memory is emptied, though
    /// the connection never broke.
    #[tokio::test]
    async fn one_lost_message_is_found_by_the_next_beat() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let [_here, there] = fleet(&server, &origin).await;
        let before = there.bus.state();
        origin.commit("k", 2);
        // What an invalidation does, but for the message: the key goes, and the count goes up.
        server.command(&["UNLINK", "acme:rows:k"]);
        server.command(&["INCR", "{cache:invalidate}:seq"]);
        eventually("the new row", async || there.get().await.0 == Some(2)).await;
        let after = there.bus.state();
        assert_eq!((after.gaps, after.reconnects), (before.gaps + 1, before.reconnects));
    }

    /// SF3, P2: behind a black hole trust ends within its bound, and what is served from then on comes from the
    /// origin; when the hole is gone memory comes back, without the old row.
    #[tokio::test]
    async fn a_black_hole_ends_trust_within_the_bound() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let [here, there] = fleet(&server, &origin).await;
        there.link.black_hole();
        let closed = Instant::now();
        origin.commit("k", 2);
        here.invalidate().await;
        eventually("the end of trust", async || !there.trusted()).await;
        assert!(closed.elapsed() < TRUST_FOR + Duration::from_secs(1), "{:?}", closed.elapsed());
        assert_eq!(there.get().await, (Some(2), Source::Origin));
        there.link.heal().await;
        there.settled().await;
        assert_eq!(there.get().await, (Some(2), Source::Near));
    }

    /// SF3: only the way to the client is held, so that requests and beats still arrive: that proves nothing either.
    #[tokio::test]
    async fn answers_that_do_not_come_end_trust() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let [here, there] = fleet(&server, &origin).await;
        there.link.set(Direction::ToClient, Gate::Hold);
        origin.commit("k", 2);
        here.invalidate().await;
        eventually("the end of trust", async || !there.trusted()).await;
        assert_eq!(there.get().await.0, Some(2));
        // What was held arrives now, the message among it.
        there.link.heal().await;
        there.settled().await;
        assert_eq!(there.get().await, (Some(2), Source::Near));
    }

    /// SF4, P6: Redis is killed, and the change fails; it comes back empty, and the change is told without anybody
    /// asking again.
    #[tokio::test]
    async fn a_change_that_failed_is_told_after_a_restart() {
        let (mut server, origin) = (RedisServer::start(), Origin::open());
        let [here, there] = fleet(&server, &origin).await;
        server.kill();
        origin.commit("k", 2);
        of("acme", here.cache.invalidate(&"k".to_owned())).await.unwrap_err();
        assert_eq!(here.get().await, (Some(2), Source::Origin));
        server.restart();
        eventually("the repetition", async || here.bus.state().pending == 0).await;
        for instance in [&here, &there] {
            instance.settled().await;
            assert_eq!(instance.get().await.0, Some(2));
        }
    }

    /// SF5: a subscriber that does not keep up is dropped by the server at its buffer's limit: as SF1.
    #[tokio::test]
    async fn a_subscriber_that_is_dropped_for_being_slow_serves_nothing_old() {
        let limit = ["--client-output-buffer-limit", "pubsub 64kb 64kb 1"];
        let (server, origin) = (RedisServer::start_with(&limit), Origin::open());
        let [here, there] = fleet(&server, &origin).await;
        let (reconnects, subscribers) = (there.bus.state().reconnects, subscribers(&server));
        there.link.set(Direction::ToClient, Gate::Hold);
        // More than the buffers on the way take.
        let (rubbish, sent) = ("x".repeat(1 << 20), Instant::now());
        while subscribers == self::subscribers(&server) {
            assert!(sent.elapsed() < Duration::from_secs(20), "the server drops a slow subscriber");
            server.command(&["PUBLISH", there.bus.wake_channel(), &rubbish]);
        }
        origin.commit("k", 2);
        here.invalidate().await;
        there.link.heal().await;
        eventually("a new subscription", async || there.bus.state().reconnects > reconnects).await;
        there.settled().await;
        assert_eq!(there.get().await, (Some(2), Source::Near));
    }

    fn subscribers(server: &RedisServer) -> conformance::resp::Reply {
        server.command(&["PUBSUB", "NUMSUB", "cache:invalidate"])
    }

    /// SF7, E9: the numbers of the groups are evicted, and an entry of an old number is back: it stays dead, for
    /// those who know the last number and for those who ask.
    #[tokio::test]
    async fn an_evicted_number_revives_nothing() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let [here, there] = fleet(&server, &origin).await;
        let row = "acme:rows:k";
        server.command(&["COPY", row, "saved"]);
        origin.commit("k", 2);
        of("acme", here.cache.invalidate_all()).await.unwrap();
        server.command(&["DEL", "gen:all", "gen:d:rows", "gen:t:acme:rows"]);
        server.command(&["COPY", "saved", row, "REPLACE"]);
        let new = Instance::on(&server, &origin).await;
        for instance in [&new, &here, &there] {
            eventually("the message", async || instance.get().await.0 == Some(2)).await;
            server.command(&["COPY", "saved", row, "REPLACE"]);
            assert_eq!(plain(of("acme", instance.cache.fresh(&"k".to_owned())).await.unwrap()), Some(2));
        }
    }

    /// SF8: an instance that starts before Redis keeps nothing in memory, answers all the same, and finds Redis by
    /// itself.
    #[tokio::test]
    async fn an_instance_that_starts_before_redis_keeps_nothing() {
        let (mut server, origin) = (RedisServer::start(), Origin::open());
        server.kill();
        let instance = Instance::on(&server, &origin).await;
        for version in 1..=3 {
            origin.commit("k", version);
            assert_eq!(instance.get().await, (Some(version), Source::Origin));
        }
        server.restart();
        instance.settled().await;
        assert_eq!(instance.get().await, (Some(3), Source::Near));
    }

    /// P2 without faults, and in order: when the other instance has heard of a change it serves the new row at once,
    /// and each change is heard once, without memory being emptied.
    #[tokio::test]
    async fn without_faults_each_change_is_heard_once() {
        let (server, origin) = (RedisServer::start(), Origin::open());
        let [here, there] = fleet(&server, &origin).await;
        let before = there.bus.state();
        for version in 2..=50 {
            origin.commit("k", version);
            here.invalidate().await;
            eventually("the message", async || there.bus.state().received == before.received + version - 1)
                .await;
            assert_eq!(there.get().await.0, Some(version));
        }
        let after = there.bus.state();
        assert_eq!((after.gaps, after.flushes), (before.gaps, before.flushes));
    }
}
