//! What the listener of a bus survives: subscribers that panic, and runtimes that end. Every test is in a module
//! `redis`, for it needs one.

mod common;

mod redis {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use cache_core::bus::BusHealth;
    use cache_core::prelude::*;
    use cache_core::{Clock, FlushReason, Invalidation, InvalidationSink, LockOptions, Quota};
    use cache_redis::{RedisBus, RedisLocks, RedisRateLimits};
    use conformance::redis_server::RedisServer;
    use conformance::resp::Reply;
    use tokio::runtime::Runtime;

    use crate::common::{Instance, until};

    /// A sink that panics when it is flushed.
    #[derive(Debug)]
    struct Unflushable;

    impl InvalidationSink for Unflushable {
        fn apply(&self, _: &Invalidation) {}

        fn flush(&self, _: FlushReason) {
            panic!("a sink that panics when it is flushed, as the test wants it");
        }
    }

    /// A sink that panics at each flush keeps neither the others from being flushed nor trust from returning.
    #[tokio::test]
    async fn a_sink_that_panics_when_flushed_ends_nothing() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        let (_first, heard, _second) = (
            instance.bus.subscribe(Arc::new(Unflushable)),
            instance.hear_more(),
            instance.bus.subscribe(Arc::new(Unflushable)),
        );
        server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        until("the flush behind the panic", || heard.0.flushed(FlushReason::Resubscribed) == 1).await;
        until("trust", || instance.trusted()).await;
        server.command(&["PUBLISH", "cache:invalidate", "k"]);
        until("a message", || heard.0.messages() == [Invalidation::key("k")]).await;
        let state = instance.bus.state();
        assert_eq!((state.reconnects, state.panics % 2), (1, 0), "two of a flush, on one new subscription");
    }

    /// A handler that panics at a wake-up keeps neither the others nor the invalidations behind it from being heard.
    #[tokio::test]
    async fn a_wake_up_handler_that_panics_ends_nothing() {
        let server = RedisServer::start();
        let instance = Instance::start(&server).await;
        let woken = Arc::new(AtomicUsize::new(0));
        let counted = woken.clone();
        let _handlers = [
            instance.bus.on_wake(|_| panic!("a handler that panics, as the test wants it")),
            instance.bus.on_wake(move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
            }),
        ];
        for round in 1..4 {
            server.command(&["PUBLISH", instance.bus.wake_channel(), "now"]);
            until("the other handler", || woken.load(Ordering::SeqCst) == round).await;
            server.command(&["PUBLISH", "cache:invalidate", "k"]);
            until("the message behind it", || instance.messages().len() == round).await;
        }
        let state = instance.bus.state();
        assert_eq!((state.panics, state.reconnects), (3, 0));
        assert!(instance.trusted());
    }

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    }

    /// An instance that was trusted on a runtime which is gone.
    fn left_by_its_runtime(server: &RedisServer) -> Instance {
        let first = runtime();
        let instance = first.block_on(Instance::start(server));
        drop(first);
        instance
    }

    async fn is_heard_again(server: &RedisServer, instance: &Instance, trust: &cache_core::Trust, how: &str) {
        until(&format!("trust by {how}"), || trust.near(Clock::system().now())).await;
        server.command(&["PUBLISH", "cache:invalidate", how]);
        let message = Invalidation::key(how);
        until("the message", || instance.messages().contains(&message)).await;
    }

    /// The runtime of the listener is gone: the first who publishes, subscribes or asks how the bus is on another one
    /// makes it listen there.
    #[test]
    fn a_bus_listens_again_on_another_runtime() {
        type Use = fn(&RedisBus);
        let uses: [(&str, Use); 4] = [
            ("asking for trust", |bus| drop(bus.trust())),
            ("asking for the state", |bus| {
                let _ = bus.state();
            }),
            ("subscribing", |bus| drop(bus.subscribe(Arc::new(Unflushable)))),
            ("waiting for wake-ups", |bus| drop(bus.on_wake(|_| {}))),
        ];
        let server = RedisServer::start();
        for (how, act) in uses {
            let instance = left_by_its_runtime(&server);
            let trust = instance.bus.trust();
            assert_eq!(
                instance.bus.state().health,
                BusHealth::Down,
                "nobody can listen outside of a runtime"
            );
            runtime().block_on(async {
                until("the end of trust", || !trust.near(Clock::system().now())).await;
                act(&instance.bus);
                is_heard_again(&server, &instance, &trust, how).await;
            });
        }
        let instance = left_by_its_runtime(&server);
        let trust = instance.bus.trust();
        runtime().block_on(async {
            until("the end of trust", || !trust.near(Clock::system().now())).await;
            instance.bus.publish(&Invalidation::key("k")).await.expect("published");
            is_heard_again(&server, &instance, &trust, "publishing").await;
        });
    }

    /// Nobody listens for a bus that nobody listens to, however often it is asked how it is.
    #[tokio::test]
    async fn asking_alone_begins_no_subscription() {
        let server = RedisServer::start();
        let bus = RedisBus::on(Instance::start(&server).await.bus.link().clone());
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let _ = (bus.trust(), bus.state());
        bus.publish(&Invalidation::key("k")).await.expect("published");
        assert!(tasks() <= before + 3, "a connection, and no listener");
        let numbers = server.command(&["PUBSUB", "NUMSUB", bus.wake_channel()]);
        assert_eq!(numbers, subscribers(&bus, 0));
    }

    fn subscribers(bus: &RedisBus, count: i64) -> Reply {
        Reply::Array(vec![Reply::Bulk(bus.wake_channel().into()), Reply::Integer(count)])
    }

    /// Whoever waits for a lock on another runtime than the one on which the locks were made is woken there.
    #[test]
    fn locks_are_woken_on_another_runtime() {
        let server = RedisServer::start();
        let instance = left_by_its_runtime(&server);
        let woken = Arc::new(AtomicUsize::new(0));
        let counted = woken.clone();
        let bus = instance.bus.clone();
        let _handler = bus.on_wake(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let locks = RedisLocks::on(bus.clone());
        runtime().block_on(async {
            let options = LockOptions::default();
            let held = locks.acquire("k", &options).await.expect("free");
            until("the subscription", || {
                server.command(&["PUBSUB", "NUMSUB", bus.wake_channel()]) == subscribers(&bus, 1)
            })
            .await;
            let waiter = tokio::spawn({
                let locks = locks.clone();
                async move { locks.acquire("k", &options).await.expect("in its turn") }
            });
            let queued = || server.command(&["ZCARD", "{lock:k}:queue"]) == Reply::Integer(1);
            until("the waiter", queued).await;
            held.release().await.expect("released");
            until("the wake-up", || woken.load(Ordering::SeqCst) == 1).await;
            waiter.await.expect("no panic").release().await.expect("released");
        });
    }

    /// What could not be announced, and was to be repeated on a runtime that is gone, is repeated on the next.
    #[test]
    fn what_failed_is_repeated_on_another_runtime() {
        let server = RedisServer::start();
        let first = runtime();
        let instance = first.block_on(async {
            let instance = Instance::start(&server).await;
            server.command(&["ACL", "SETUSER", "default", "-incr"]);
            instance.cache().invalidate("acme:d:1").await.expect_err("the script fails");
            instance
        });
        drop(first);
        server.command(&["ACL", "SETUSER", "default", "+incr"]);
        assert_eq!(instance.bus.state().pending, 1);
        runtime().block_on(async {
            until("the repetition", || instance.bus.state().pending == 0).await;
            until("trust", || instance.trusted()).await;
        });
    }

    /// Connections that belong to a runtime which is gone are not used on another one, not even for what must not be
    /// asked twice.
    #[test]
    fn connections_of_a_runtime_end_with_it() {
        let server = RedisServer::start();
        let first = runtime();
        let quota = Quota::fixed_window("q", 10, std::time::Duration::from_secs(600));
        let (instance, limits) = first.block_on(async {
            let instance = Instance::start(&server).await;
            let limits = RedisRateLimits::on(instance.bus.link().clone());
            limits.check(&quota, "k", 1).await.expect("counted");
            instance.cache().set("acme:d:1", &1, None).await.expect("set");
            instance.cache().invalidate_prefix("other:").await.expect("invalidate_prefix");
            (instance, limits)
        });
        drop(first);
        runtime().block_on(async {
            let taken = limits.check(&quota, "k", 1).await.expect("counted");
            assert_eq!(taken.remaining, 8, "charged once each time");
            let cache = instance.cache();
            assert_eq!(cache.get("acme:d:1").await.expect("get"), Some(1));
            assert_eq!(cache.invalidate_prefix("acme:").await.expect("invalidate_prefix"), 1);
        });
    }
}
