//! In which order things happen on a real Redis: removed before told, sent before trusted, and told to nobody else.
//! Every test is in a module `redis`, for it needs one.

mod common;

mod redis {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use cache_core::clock::COARSE_LAG;
    use cache_core::prelude::*;
    use cache_core::{Clock, FlushReason, Invalidation, InvalidationSink};
    use cache_redis::{RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
    use conformance::proxy::{Direction, Gate, Proxy};
    use conformance::redis_server::RedisServer;
    use conformance::resp::Reply;

    use crate::common::{Instance, until};

    /// Asks Redis for a key whenever it is told something.
    #[derive(Debug)]
    struct Looking {
        server: Arc<RedisServer>,
        found: Mutex<Vec<Reply>>,
    }

    impl InvalidationSink for Looking {
        fn apply(&self, _: &Invalidation) {
            let found = self.server.command(&["EXISTS", "acme:d:1"]);
            self.found.lock().expect("not poisoned").push(found);
        }

        fn flush(&self, _: FlushReason) {}
    }

    /// COHERENCE 3.4, P1: whoever is told, here or there, finds the key gone already: told first, a reader could fetch
    /// the old value back in.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_told_finds_the_key_gone() {
        let server = Arc::new(RedisServer::start());
        let (here, there) = (Instance::start(&server).await, Instance::start(&server).await);
        let cache = here.cache();
        let looking = [&here, &there].map(|instance| {
            let looking = Arc::new(Looking { server: Arc::clone(&server), found: Mutex::default() });
            let subscription = instance.bus.subscribe(looking.clone());
            (looking, subscription)
        });
        for told in 1..=20 {
            cache.set("acme:d:1", &1, None).await.expect("set");
            match told % 3 {
                0 => drop(cache.invalidate_prefix("acme:").await.expect("invalidate_prefix")),
                1 => cache.invalidate("acme:d:1").await.expect("invalidate"),
                _ => cache.invalidate_many(&["acme:d:2", "acme:d:1"]).await.expect("invalidate_many"),
            }
            for (looking, _) in &looking {
                let found = || looking.found.lock().expect("not poisoned").clone();
                until("the message", || found().len() == told).await;
                assert!(found().iter().all(|found| *found == Reply::Integer(0)), "{:?}", found());
            }
        }
    }

    /// P2: trust counts from when a beat was sent: an echo that takes long earns that much less of it.
    #[tokio::test]
    async fn a_slow_echo_earns_less_trust() {
        const SLOW: Duration = Duration::from_millis(150);
        let server = RedisServer::start();
        let proxy = Proxy::start(server.address()).await;
        let instance = Instance::start_untrusted(&format!("redis://{}", proxy.address()));
        until("trust", || instance.trusted()).await;
        proxy.set(Direction::ToClient, Gate::Delay(SLOW));
        let (clock, trust) = (Clock::system(), instance.bus.trust());
        // What was on its way still came fast.
        let last = trust.near_until();
        until("a slow echo", || trust.near_until() > last && instance.bus.state().lag >= Some(SLOW)).await;
        let (mut prolonged, mut last) = (0, trust.near_until());
        while prolonged < 5 {
            let until = trust.near_until();
            let latest = clock.now() + instance.trust_for();
            assert!(until + SLOW + COARSE_LAG <= latest, "{until:?} {latest:?}");
            prolonged += usize::from(until > last);
            last = until;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// P6: beats that come back do not bring trust back as long as something that failed is not announced: the far tier
    /// may still hold the old value.
    #[tokio::test]
    async fn beats_bring_no_trust_while_something_is_to_be_announced() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        // The sequence cannot be counted, and beats go on.
        server.command(&["ACL", "SETUSER", "default", "-incr"]);
        instance.cache().invalidate("acme:d:1").await.expect_err("the script fails");
        let (mut beats, mut last) = (0, instance.bus.state().lag);
        until("ten beats", || {
            assert!(!instance.trusted(), "after {beats} beats");
            let lag = instance.bus.state().lag;
            beats += usize::from(lag != last);
            last = lag;
            beats == 10
        })
        .await;
        assert_eq!(instance.bus.state().pending, 1);
        server.command(&["ACL", "SETUSER", "default", "+incr"]);
        until("the repetition", || instance.bus.state().pending == 0).await;
        until("trust", || instance.trusted()).await;
    }

    /// SD10: deployments with prefixes of their own share a server and hear nothing of each other.
    #[tokio::test]
    async fn deployments_on_one_server_do_not_hear_each_other() {
        let server = RedisServer::start();
        let instance = |prefix: &str| {
            let settings = RedisSettings::from_url(&server.url()).expect("a URL");
            let settings = settings.with_key_prefix(prefix).expect("a prefix");
            let bus = RedisBus::on(RedisLink::lazy(settings).expect("a link"));
            let heard = Arc::new(Heard::default());
            let subscription = bus.subscribe(heard.clone());
            let cache = RedisCacheService::on(bus.clone(), RedisCacheOptions::default());
            (bus, cache, heard, subscription)
        };
        let (blue, bluer, blue_too) = (instance("blue:"), instance("blue:r:"), instance("blue:"));
        let trusted = |bus: &RedisBus| bus.trust().near(Clock::system().now());
        for (bus, ..) in [&blue, &bluer, &blue_too] {
            until("trust", || trusted(bus)).await;
        }
        blue.1.set("k", &1, None).await.expect("set");
        bluer.1.set("k", &2, None).await.expect("set");
        blue.1.invalidate("k").await.expect("invalidate");
        until("the message", || blue_too.2.all() == [Invalidation::key("k")]).await;
        bluer.1.invalidate("other").await.expect("invalidate");
        assert_eq!(bluer.2.all(), [Invalidation::key("other")]);
        assert_eq!(bluer.1.get("k").await.expect("get"), Some(2));
    }

    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<Invalidation>>);

    impl Heard {
        fn all(&self) -> Vec<Invalidation> {
            self.0.lock().expect("not poisoned").clone()
        }
    }

    impl InvalidationSink for Heard {
        fn apply(&self, message: &Invalidation) {
            self.0.lock().expect("not poisoned").push(message.clone());
        }

        fn flush(&self, _: FlushReason) {}
    }
}
