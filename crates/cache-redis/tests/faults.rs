//! Links that break, hang and come back, and callers that leave: what must hold all the same. Every test is in a
//! module `redis`, for it needs one.

mod common;

mod redis {
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use cache_core::prelude::*;
    use cache_core::{BackendErrorKind, FlushReason, Invalidation};
    use cache_redis::{RedisBus, RedisCacheOptions, RedisCacheService, RedisLink, RedisSettings};
    use conformance::redis_server::RedisServer;
    use conformance::resp::Reply;

    use crate::common::proxy::Proxy;
    use crate::common::{Instance, until};

    fn cache(url: &str) -> RedisCacheService {
        let link = RedisLink::lazy(RedisSettings::from_url(url).expect("a URL")).expect("a link");
        RedisCacheService::on(RedisBus::on(link), RedisCacheOptions::default())
    }

    /// SC10: callers that wait for one connection wait together: with a server that accepts and says nothing,
    /// fifty of them are done after one connect deadline, not after fifty.
    #[tokio::test]
    async fn callers_wait_for_a_connection_together() {
        let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let cache = cache(&format!("redis://{}", silent.local_addr().expect("an address")));
        let started = Instant::now();
        let calls = (0..50).map(|_| cache.get_bytes("k"));
        for answer in futures_util::future::join_all(calls).await {
            answer.expect_err("nobody answers");
        }
        assert!(started.elapsed() < Duration::from_millis(1_900), "{:?}", started.elapsed());
    }

    /// C3: a connection that the server closed while idle costs nobody an error.
    #[tokio::test]
    async fn an_idle_connection_that_was_closed_is_no_error() {
        let server = RedisServer::start();
        let cache = cache(&server.url());
        cache.set("k", &1, None).await.expect("set");
        for closed in 1..=5 {
            server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
            assert_eq!(cache.get("k").await.expect("get"), Some(1));
            cache.invalidate("other").await.expect("invalidate");
            assert_eq!(cache.redis().connections_made(), closed + 1);
        }
    }

    /// C3, SC10: on a half-open link each call costs its deadline, and after three the link is given up: well
    /// before the kernel finds out.
    #[tokio::test]
    async fn a_half_open_link_is_replaced() {
        let server = RedisServer::start();
        let proxy = Proxy::to(server.address()).await;
        let cache = cache(&proxy.url());
        cache.set("k", &1, None).await.expect("set");
        proxy.swallow();
        for _ in 0..3 {
            let started = Instant::now();
            let error = cache.get_bytes("k").await.expect_err("swallowed");
            assert!(matches!(error, CacheError::Timeout { .. }), "{error:?}");
            let took = started.elapsed();
            assert!((450..1_200).contains(&took.as_millis()), "{took:?}");
        }
        assert_eq!(cache.get("k").await.expect("get"), Some(1), "on a new connection");
    }

    /// C3: callers with less patience than the link find a half-open link, too.
    #[tokio::test]
    async fn impatient_callers_find_a_half_open_link() {
        let server = RedisServer::start();
        let proxy = Proxy::to(server.address()).await;
        let cache = cache(&proxy.url());
        cache.set("k", &1, None).await.expect("set");
        proxy.swallow();
        let deadline = Instant::now() + Duration::from_secs(10);
        while tokio::time::timeout(Duration::from_millis(50), cache.get_bytes("k")).await.is_err() {
            assert!(Instant::now() < deadline, "nobody replaced the connection");
        }
        assert_eq!(cache.redis().connections_made(), 2);
    }

    /// SF3, I3: a half-open subscription is found by beats that do not come back: trust ends by itself, and
    /// returns on a new subscription, through a flush.
    #[tokio::test]
    async fn a_half_open_subscription_is_replaced() {
        let server = RedisServer::start();
        let proxy = Proxy::to(server.address()).await;
        let instance = Instance::start_untrusted(&proxy.url());
        until("trust", || instance.trusted()).await;
        proxy.swallow();
        let swallowed = Instant::now();
        until("the end of trust", || !instance.trusted()).await;
        assert!(swallowed.elapsed() < Duration::from_millis(1_500), "{:?}", swallowed.elapsed());
        server.command(&["PUBLISH", "cache:invalidate", "missed"]);
        until("a new subscription", || instance.flushed(FlushReason::Resubscribed) == 2).await;
        until("trust", || instance.trusted()).await;
        assert_eq!(instance.messages(), [], "the message was missed, and memory was emptied for it");
    }

    /// E3, P1: announcing a key does not remove what was just stored under it.
    #[tokio::test]
    async fn telling_is_not_removing() {
        let server = RedisServer::start();
        let (here, there) = (Instance::start(&server).await, Instance::start(&server).await);
        let cache = here.cache();
        cache.set("acme:d:1", &1, None).await.expect("set");
        here.bus.publish(&Invalidation::key("acme:d:1")).await.expect("published");
        until("the message", || there.messages() == [Invalidation::key("acme:d:1")]).await;
        assert_eq!(cache.get("acme:d:1").await.expect("get"), Some(1));
    }

    /// P6: a prefix that could not be removed is removed later.
    #[tokio::test]
    async fn a_failed_prefix_is_repeated() {
        let server = RedisServer::start();
        let (here, there) = (Instance::start(&server).await, Instance::start(&server).await);
        let cache = here.cache();
        cache.set("acme:d:1", &1, None).await.expect("set");
        server.pause();
        cache.invalidate_prefix("acme:").await.expect_err("Redis is frozen");
        assert_eq!(here.messages(), [Invalidation::Prefix("acme:".into())]);
        assert!(!here.trusted());
        server.resume();
        until("the repetition", || here.bus.state().pending == 0).await;
        until("the message", || there.messages().contains(&Invalidation::Prefix("acme:".into()))).await;
        assert_eq!(there.cache().get::<u32>("acme:d:1").await.expect("get"), None);
    }

    /// P6: a caller that leaves in the middle of an invalidation leaves no old value behind, neither here nor
    /// there: it may have happened, so it is seen through.
    #[tokio::test]
    async fn an_abandoned_invalidation_is_seen_through() {
        let server = RedisServer::start();
        let (here, there) = (Instance::start(&server).await, Instance::start(&server).await);
        let cache = here.cache();
        cache.set("acme:d:1", &1, None).await.expect("set");
        server.pause();
        let abandoned = tokio::time::timeout(Duration::from_millis(50), cache.invalidate("acme:d:1")).await;
        abandoned.expect_err("the caller had no patience");
        assert_eq!(here.messages(), [Invalidation::key("acme:d:1")]);
        assert!(!here.trusted());
        server.resume();
        until("the repetition", || here.bus.state().pending == 0).await;
        until("the message", || there.messages().contains(&Invalidation::key("acme:d:1"))).await;
        assert_eq!(cache.get::<u32>("acme:d:1").await.expect("get"), None);
    }

    /// L3: an instance that listens finds a server that is back long before the breaker's pause is over, and
    /// with it every service on the link.
    #[tokio::test]
    async fn a_heartbeat_ends_an_outage_early() {
        let mut server = RedisServer::start();
        let instance = Instance::start(&server).await;
        let cache = instance.cache();
        server.kill();
        let deadline = Instant::now() + Duration::from_secs(20);
        let pause = loop {
            let error = cache.get_bytes("k").await.expect_err("Redis is dead");
            if let CacheError::Backend(error) = &error
                && error.kind == BackendErrorKind::CircuitOpen
                && let Some(pause) = error.detail.split_ascii_whitespace().find_map(|word| word.parse().ok())
                && pause > 2_500
            {
                break Duration::from_millis(pause);
            }
            assert!(Instant::now() < deadline, "the pause did not grow: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        server.restart();
        let back = Instant::now();
        until("trust", || instance.trusted()).await;
        cache.get_bytes("k").await.expect("get");
        assert!(back.elapsed() < pause - Duration::from_millis(500), "{:?} of {pause:?}", back.elapsed());
    }

    /// SF9: a hundred cut subscriptions leave no connection and no task behind.
    #[tokio::test]
    async fn reconnecting_leaks_nothing() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        let connections = || server.command(&["CLIENT", "LIST"]).text().expect("text").lines().count();
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let (connections_before, tasks_before) = (connections(), tasks());
        for cut in 1..=25 {
            server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            until("a new subscription", || instance.flushed(FlushReason::Resubscribed) == cut + 1).await;
        }
        until("trust", || instance.trusted()).await;
        until("as many connections as before", || connections() == connections_before).await;
        until("as many tasks as before", || tasks() == tasks_before).await;
    }

    /// SD12: a storm of messages is applied to the last one, or memory is emptied; either way it ends trusted.
    #[tokio::test]
    async fn a_storm_is_survived() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        let storm = "for n = 1, 100000 do redis.call('PUBLISH', 'cache:invalidate', 'k' .. n) end";
        server.command(&["EVAL", storm, "0"]);
        let last = Invalidation::key("k100000");
        let caught_up = || instance.messages().last() == Some(&last);
        until("the end of the storm", || caught_up() || instance.flushed(FlushReason::Resubscribed) > 1)
            .await;
        until("trust", || instance.trusted()).await;
    }

    /// SD11: a message of a newer version that was counted empties memory, since nobody here knows what it
    /// names.
    #[tokio::test]
    async fn a_newer_message_empties_memory() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        let newer = "local n = redis.call('INCR', KEYS[1]) \
                     redis.call('PUBLISH', 'cache:invalidate', '{\"n\":' .. n .. ',\"v\":9,\"op\":\"new\"}')";
        server.command(&["EVAL", newer, "1", "{cache:invalidate}:seq"]);
        until("the flush", || instance.flushed(FlushReason::Gap) == 1).await;
        assert_eq!(instance.bus.state().malformed, 1);
        until("trust", || instance.trusted()).await;
    }

    /// F3: what is published for one instance is heard by its handlers, for as long as they want to.
    #[tokio::test]
    async fn an_instance_is_woken() {
        let server = RedisServer::start();
        let (here, there) = (Instance::start(&server).await, Instance::start(&server).await);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listen = |bus: &RedisBus| {
            let heard = Arc::clone(&heard);
            bus.on_wake(move |payload| heard.lock().expect("not poisoned").push(payload.to_vec()))
        };
        let (handler, _other_instance) = (listen(&here.bus), listen(&there.bus));
        let wake = |payload: &str| server.command(&["PUBLISH", here.bus.wake_channel(), payload]);
        assert_eq!(wake("now"), Reply::Integer(1), "only one instance listens");
        until("the wake-up", || *heard.lock().expect("not poisoned") == [b"now"]).await;
        drop(handler);
        wake("later");
        server.command(&["PUBLISH", "cache:invalidate", "k"]);
        until("the message behind it", || here.messages().len() == 1).await;
        assert_eq!(heard.lock().expect("not poisoned").len(), 1);
    }

    /// L4, SH5: a bus that was shut down listens no more and trusts nothing; publishing still works.
    #[tokio::test]
    async fn a_shut_down_bus_is_silent() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        instance.bus.shutdown();
        assert!(!instance.trusted());
        let nobody = Reply::Array(vec![Reply::Bulk(b"cache:invalidate".to_vec()), Reply::Integer(0)]);
        until("the end of the subscription", || {
            server.command(&["PUBSUB", "NUMSUB", "cache:invalidate"]) == nobody
        })
        .await;
        instance.cache().invalidate("k").await.expect("invalidate");
        assert_eq!(instance.messages(), [Invalidation::key("k")]);
        assert!(!instance.trusted());
    }

    /// C7: services of one's own run their commands on the shared connection.
    #[tokio::test]
    async fn the_shared_connection_is_handed_out() {
        let server = RedisServer::start();
        let cache = cache(&server.url());
        cache.set("k", &1, None).await.expect("set");
        let mut connection = cache.redis().connection().await.expect("a connection");
        let life: i64 = ::redis::cmd("PTTL").arg("k").query_async(&mut connection).await.expect("PTTL");
        assert!(life > 0);
        assert_eq!(cache.redis().connections_made(), 1);
    }
}
