//! What the listener of a bus survives: subscribers that panic, and runtimes that end. Every test is in a module
//! `redis`, for it needs one.

mod common;

mod redis {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use cache_core::prelude::*;
    use cache_core::{FlushReason, Invalidation, InvalidationSink};
    use conformance::redis_server::RedisServer;

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
            instance.bus.on_wake(move |_| drop(counted.fetch_add(1, Ordering::SeqCst))),
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
}
