//! The bus on a real Redis: what arrives, what is missed, and when memory is trusted. Every test is in a module
//! `redis`, for it needs one.

mod common;

mod redis {
    use std::time::{Duration, Instant};

    use cache_core::bus::BusHealth;
    use cache_core::clock::COARSE_LAG;
    use cache_core::prelude::*;
    use cache_core::{Clock, FlushReason, Invalidation, TenantId};
    use conformance::redis_server::RedisServer;

    use crate::common::{Instance, until};

    /// I1, SD1: every kind of message arrives at the other instance, in order; the publisher hears its own at
    /// once, and not again from the channel.
    #[tokio::test]
    async fn messages_arrive_in_order_and_once() {
        let server = RedisServer::start();
        let (here, there) = (Instance::start(&server).await, Instance::start(&server).await);
        let tenant = Some(TenantId::new("acme").expect("an id"));
        let messages = [
            Invalidation::key("acme:d:1"),
            Invalidation::Keys(vec!["a".into(), "b".into()]),
            Invalidation::Prefix("acme:".into()),
            Invalidation::Domain { tenant: tenant.clone(), domain: "d".into() },
            Invalidation::Tag { tenant, tag: "t".into() },
            Invalidation::All,
        ];
        for message in &messages {
            here.bus.publish(message).await.expect("published");
        }
        assert_eq!(here.messages(), messages, "applied here before `publish` returned");
        until("all messages", || there.messages().len() == messages.len()).await;
        assert_eq!(there.messages(), messages);
        until("the echo", || here.bus.state().lag.is_some()).await;
        there.bus.publish(&Invalidation::key("last")).await.expect("published");
        until("the last message", || here.messages().len() > messages.len()).await;
        assert_eq!(here.messages().len(), messages.len() + 1, "own messages are not applied twice");
        assert_eq!((here.flushed(FlushReason::Gap), there.flushed(FlushReason::Gap)), (0, 0));
    }

    /// I2: a plain cache announces its invalidations in the same step.
    #[tokio::test]
    async fn a_cache_announces_what_it_invalidates() {
        let server = RedisServer::start();
        let (here, there) = (Instance::start(&server).await, Instance::start(&server).await);
        let cache = here.cache();
        cache.set("acme:d:1", &1, None).await.expect("set");
        cache.invalidate("acme:d:1").await.expect("invalidate");
        cache.invalidate_prefix("acme:").await.expect("invalidate_prefix");
        let expected = [Invalidation::key("acme:d:1"), Invalidation::Prefix("acme:".into())];
        until("both", || there.messages().len() == 2).await;
        assert_eq!(there.messages(), expected);
        assert_eq!(here.messages(), expected);
    }

    /// I1, SD13: a message by hand is understood, rubbish is counted and skipped, and neither looks like a gap.
    #[tokio::test]
    async fn foreign_messages_are_applied_and_rubbish_is_skipped() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        for payload in ["{", "org:acme", "{\"op\":\"dance\"}", "{\"op\":\"all\"}"] {
            server.command(&["PUBLISH", "cache:invalidate", payload]);
        }
        until("the last one", || instance.messages().len() == 2).await;
        assert_eq!(instance.messages(), [Invalidation::key("org:acme"), Invalidation::All]);
        assert_eq!(instance.bus.state().malformed, 2);
        assert_eq!(instance.flushed(FlushReason::Gap), 0);
        assert_eq!(instance.bus.state().health, BusHealth::Trusted);
    }

    /// I4, SF2: a single lost message is found by the next message or beat, and empties memory.
    #[tokio::test]
    async fn a_lost_message_is_found() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        // Counted by the server and never delivered: what a lost message looks like from here.
        server.command(&["INCR", "{cache:invalidate}:seq"]);
        until("the gap", || instance.flushed(FlushReason::Gap) == 1).await;
        assert_eq!(instance.bus.state().gaps, 1);
    }

    /// SF1, I3: a cut subscription is made anew, and memory is emptied before it is trusted again.
    #[tokio::test]
    async fn a_cut_subscription_is_made_anew() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        assert_eq!(instance.flushed(FlushReason::Resubscribed), 1);
        server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        until("a new subscription", || instance.flushed(FlushReason::Resubscribed) == 2).await;
        until("trust", || instance.trusted()).await;
        assert_eq!(instance.bus.state().reconnects, 1);
        server.command(&["PUBLISH", "cache:invalidate", "k"]);
        until("a message", || instance.messages() == [Invalidation::key("k")]).await;
    }

    /// SF3, P2: while the server is frozen trust runs out by itself within its bound; it returns through a
    /// flush.
    #[tokio::test]
    async fn trust_runs_out_while_the_server_is_frozen() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        server.pause();
        let frozen = Instant::now();
        until("the end of trust", || !instance.trusted()).await;
        assert!(frozen.elapsed() < Duration::from_secs(2), "{:?}", frozen.elapsed());
        let flushes = instance.bus.state().flushes;
        server.resume();
        until("trust", || instance.trusted()).await;
        assert!(instance.bus.state().flushes > flushes, "emptied before it was trusted");
    }

    /// P2: the coarse clock that hits look at may be late; memory is trusted for that much less than the bound.
    #[tokio::test]
    async fn a_late_clock_does_not_stretch_the_bound() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        let (clock, trust) = (Clock::system(), instance.bus.trust());
        let (mut prolonged, mut last) = (0, trust.near_until());
        // Right after each beat trust reaches as far as it ever does.
        while prolonged < 10 {
            let until = trust.near_until();
            let latest = clock.now() + instance.trust_for();
            assert!(until + COARSE_LAG <= latest, "{until:?} {latest:?}");
            prolonged += usize::from(until > last);
            last = until;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// SF4, L3: a killed server that comes back empty is trusted again, by itself.
    #[tokio::test]
    async fn trust_returns_after_a_restart() {
        let mut server = RedisServer::start();
        let instance = Instance::start(&server).await;
        server.kill();
        until("the end of trust", || !instance.trusted()).await;
        until("a failed attempt", || instance.bus.state().health == BusHealth::Down).await;
        server.restart();
        until("trust", || instance.trusted()).await;
    }

    /// SF8: an instance that starts before Redis trusts nothing, and finds Redis when it comes.
    #[tokio::test]
    async fn an_instance_may_start_before_redis() {
        let mut server = RedisServer::start();
        server.kill();
        let instance = Instance::start_untrusted(&server.url());
        assert!(!instance.trusted());
        server.restart();
        until("trust", || instance.trusted()).await;
    }

    /// A bus that begins, one that lost its trust and one that hears nothing are told apart; and what has begun once
    /// does not begin again.
    #[tokio::test]
    async fn its_health_tells_beginning_loss_and_failure_apart() {
        let server = RedisServer::start();
        let sound = Instance::start_untrusted(&server.url());
        until("trust", || match sound.bus.state().health {
            BusHealth::Starting => false,
            health => health == BusHealth::Trusted || panic!("{health:?} at the start"),
        })
        .await;
        server.pause();
        let instance = Instance::start_untrusted(&server.url());
        let health = || instance.bus.state().health;
        assert_eq!(health(), BusHealth::Starting);
        until("the end of the first attempt", || health() == BusHealth::Down).await;
        server.resume();
        let mut seen = Vec::new();
        until("trust", || {
            seen.push(health());
            health() == BusHealth::Trusted
        })
        .await;
        assert!(!seen.contains(&BusHealth::Starting), "{seen:?}");
        server.pause();
        until("the end of trust", || health() != BusHealth::Trusted).await;
        assert_eq!(health(), BusHealth::Recovering);
        until("the end of the next attempt", || health() == BusHealth::Down).await;
        server.resume();
        until("trust", || health() == BusHealth::Trusted).await;
        instance.bus.shutdown();
        assert_eq!(health(), BusHealth::Down);
    }

    /// P6, SD2: a failed invalidation is an error to its caller, is applied here all the same, keeps memory
    /// untrusted, and is repeated until Redis and the others have it.
    #[tokio::test]
    async fn a_failed_invalidation_is_repeated() {
        let server = RedisServer::start();
        let (here, there) = (Instance::start(&server).await, Instance::start(&server).await);
        let cache = here.cache();
        cache.set("acme:d:1", &1, None).await.expect("set");
        server.pause();
        let failed = cache.invalidate("acme:d:1").await.expect_err("Redis is frozen");
        assert!(matches!(failed, CacheError::Timeout { .. }), "{failed:?}");
        assert_eq!(here.messages().first(), Some(&Invalidation::key("acme:d:1")));
        assert!(!here.trusted(), "the far tier may still hold the old value");
        assert_eq!(here.bus.state().pending, 1);
        server.resume();
        until("the repetition", || here.bus.state().pending == 0).await;
        until("the other instance", || there.messages().contains(&Invalidation::key("acme:d:1"))).await;
        assert_eq!(there.cache().get::<u32>("acme:d:1").await.expect("get"), None);
        until("trust", || here.trusted()).await;
    }

    /// P6: trust ends with the failure itself, not when it would have run out; and returns only when what failed
    /// is out.
    #[tokio::test]
    async fn a_failed_invalidation_ends_trust_at_once() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        let cache = instance.cache();
        // A sequence that cannot be counted: the script fails, and everything else goes on.
        server.command(&["SET", "{cache:invalidate}:seq", "no number"]);
        assert!(instance.trusted());
        cache.invalidate("acme:d:1").await.expect_err("the script fails");
        assert!(!instance.trusted());
        server.command(&["DEL", "{cache:invalidate}:seq"]);
        until("the repetition", || instance.bus.state().pending == 0).await;
        until("trust", || instance.trusted()).await;
    }

    /// SF9, SH5: a dropped bus leaves no subscription behind.
    #[tokio::test]
    async fn a_dropped_bus_leaves_nothing() {
        let server = RedisServer::start();
        let subscribers = || server.command(&["PUBSUB", "NUMSUB", "cache:invalidate"]);
        let nobody = subscribers();
        for _ in 0..5 {
            let instance = Instance::start(&server).await;
            assert_ne!(subscribers(), nobody);
            drop(instance);
        }
        until("the end of the subscriptions", || subscribers() == nobody).await;
    }
}
