//! Hearing of changes: what is told, to whom, and when it ends.
mod support;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cache_core::{FlushReason, Invalidation, InvalidationBus, InvalidationSink, Scope};
use concurrency::LocalBus;
use futures_util::{FutureExt, StreamExt};
use support::{Origin, of, tenant, versions};
use tenant_cache::{Caches, Change, TenantCache};

fn key(name: &str) -> String {
    name.to_owned()
}

/// E10: the stream tells what was invalidated, here and by messages of others, in order.
#[tokio::test]
async fn the_stream_tells_what_was_invalidated() {
    let bus = Arc::new(LocalBus::new());
    let instance = || Caches::builder().bus(bus.clone()).build().unwrap();
    let (here, there, origin) = (instance(), instance(), Origin::open());
    let (mine, other) = (versions(&here, &origin), versions(&there, &origin));
    let mut changes = std::pin::pin!(mine.changes());
    assert!(changes.next().now_or_never().is_none());
    of("acme", other.invalidate(&key("a"))).await.unwrap();
    of("acme", mine.invalidate_all()).await.unwrap();
    other.clear().await.unwrap();
    bus.publish(&Invalidation::key("other:domain:k")).await.unwrap();
    bus.publish(&Invalidation::key("acme:ann:rows:b")).await.unwrap();
    let one = |user: Option<&str>, name: &str| Change::Key {
        tenant: Some(tenant("acme")),
        user: user.map(support::user),
        key: key(name),
    };
    let many = |id: Option<&str>| Change::Many { tenant: id.map(tenant) };
    for expected in [one(None, "a"), many(Some("acme")), many(None), one(Some("ann"), "b")] {
        assert_eq!(changes.next().now_or_never(), Some(Some(expected)));
    }
    assert!(changes.next().now_or_never().is_none(), "nothing of other domains");
}

/// E10, SD12: a listener that is too slow is told that it missed something, and the backlog is bounded.
#[tokio::test]
async fn a_slow_listener_is_told_that_it_missed_something() {
    let (caches, origin) = (Caches::in_memory(), Origin::open());
    let cache = versions(&caches, &origin);
    let mut changes = std::pin::pin!(cache.changes());
    for n in 0..5_000 {
        of("acme", cache.invalidate(&n.to_string())).await.unwrap();
    }
    assert_eq!(changes.next().now_or_never(), Some(Some(Change::Many { tenant: None })));
    let mut rest = 0;
    // The runtime would make a reader of so many pause now and then.
    let reading = async {
        while let Some(Some(_)) = changes.next().now_or_never() {
            rest += 1;
        }
    };
    tokio::task::unconstrained(reading).await;
    assert_eq!(rest, 1_024);
}

/// E10: a handler is called for its key and its tenant, and no more once its guard is dropped.
#[tokio::test]
async fn a_handler_hears_its_key_until_its_guard_is_dropped() {
    let (caches, origin) = (Caches::in_memory(), Origin::open());
    let cache = versions(&caches, &origin);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let guard = of("acme", async {
        let count = move || {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        cache.on_change(&key("k"), count).unwrap()
    })
    .await;
    let heard = || calls.swap(0, Ordering::SeqCst);
    of("acme", cache.invalidate(&key("other"))).await.unwrap();
    of("globex", cache.invalidate(&key("k"))).await.unwrap();
    of("globex", cache.invalidate_all()).await.unwrap();
    assert_eq!(heard(), 0);
    of("acme", cache.invalidate(&key("k"))).await.unwrap();
    assert_eq!(heard(), 1);
    of("acme", cache.invalidate_all()).await.unwrap();
    cache.clear().await.unwrap();
    caches.invalidate_prefix("acme:").await.unwrap();
    assert_eq!(heard(), 3);
    drop(guard);
    of("acme", cache.invalidate(&key("k"))).await.unwrap();
    assert_eq!(heard(), 0);
}

/// E10, I3: when messages may have been missed, everybody is told so.
#[tokio::test]
async fn a_flush_is_told_to_everybody() {
    #[derive(Debug, Default)]
    struct Flushing(cache_core::bus::Sinks);

    #[async_trait::async_trait]
    impl InvalidationBus for Flushing {
        async fn publish(&self, message: &Invalidation) -> Result<(), cache_core::CacheError> {
            self.0.apply(message);
            Ok(())
        }
        fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> cache_core::Subscription {
            self.0.subscribe(sink)
        }
        fn trust(&self) -> Arc<cache_core::Trust> {
            Arc::new(cache_core::Trust::always())
        }
        fn state(&self) -> cache_core::BusState {
            cache_core::BusState::default()
        }
    }

    let bus = Arc::new(Flushing::default());
    let caches = Caches::builder().bus(bus.clone()).build().unwrap();
    let origin = Origin::open();
    let cache = versions(&caches, &origin);
    origin.commit("k", 1);
    of("acme", cache.get(&key("k"))).await.unwrap();
    let mut changes = std::pin::pin!(cache.changes());
    bus.0.flush(FlushReason::Gap);
    assert_eq!(changes.next().now_or_never(), Some(Some(Change::Many { tenant: None })));
    assert!(of("acme", async { cache.peek(&key("k")) }).await.unwrap().is_none());
}

/// A handler that panics keeps no other handler from being called and no entry from being forgotten: neither those
/// of the same message, nor those of other domains. Who invalidates learns of the panic, and goes on.
#[tokio::test]
async fn a_panicking_handler_keeps_nobody_from_hearing() {
    let (bus, origin) = (Arc::new(LocalBus::new()), Origin::open());
    let caches = Caches::builder().bus(bus.clone()).build().unwrap();
    let rows = versions(&caches, &origin);
    // Before `rows` in the order of domains.
    let others: TenantCache<String, u64> = caches
        .domain("others")
        .scope(Scope::Tenant)
        .load(|_: String| async { Ok::<_, std::io::Error>(Some(7)) })
        .unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let _handlers = of("acme", async {
        let count = move || {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        let panic = || panic!("a handler that panics, as the test wants it");
        [
            rows.on_change(&key("a"), panic).unwrap(),
            rows.on_change(&key("b"), count).unwrap(),
            others.on_change(&key("o"), panic).unwrap(),
        ]
    })
    .await;
    let text = |name: &str| -> Arc<str> { format!("acme:rows:{name}").into() };
    for message in [
        Invalidation::Keys(["a", "b"].map(text).to_vec()),
        Invalidation::Prefix("acme:".into()),
        Invalidation::Domain { tenant: Some(tenant("acme")), domain: "rows".into() },
        Invalidation::Tag { tenant: Some(tenant("acme")), tag: "of all".into() },
        Invalidation::All,
    ] {
        for name in ["a", "b"] {
            origin.commit(name, 1);
            of("acme", rows.get(&key(name))).await.unwrap();
        }
        of("acme", others.get(&key("o"))).await.unwrap();
        calls.store(0, Ordering::SeqCst);
        let published = AssertUnwindSafe(bus.publish(&message)).catch_unwind().await;
        assert!(published.is_err(), "{message:?}: who publishes learns of the panic");
        assert!(calls.load(Ordering::SeqCst) > 0, "{message:?}: the other handler was called");
        for name in ["a", "b"] {
            let held = of("acme", async { rows.peek(&key(name)).unwrap() }).await;
            assert_eq!(held, None, "{message:?}: `{name}` was forgotten");
        }
    }
    let invalidated = AssertUnwindSafe(of("acme", rows.invalidate(&key("a")))).catch_unwind().await;
    assert!(invalidated.is_err(), "a panic of a handler is one of who invalidates");
    of("acme", rows.invalidate(&key("b"))).await.unwrap();
    origin.commit("a", 2);
    assert_eq!(of("acme", rows.get(&key("a"))).await.unwrap().as_deref(), Some(&2));
}
