//! What is particular to the in-process backend: bounds, causes of eviction, memory, the bus.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cache_core::bus::Sinks;
use cache_core::prelude::*;
use cache_core::{BusState, Invalidation, InvalidationSink, ManualClock, Subscription, Trust};
use cache_moka::{Capacity, MokaCacheService};

fn value(bytes: usize) -> Bytes {
    Bytes::from(vec![b'x'; bytes])
}

/// B1: the defaults.
#[tokio::test]
async fn the_default_holds_ten_thousand_entries() {
    let cache = MokaCacheService::default();
    for n in 0..10_000 {
        cache.set(&n.to_string(), &n, None).await.unwrap();
    }
    let stats = cache.stats();
    assert_eq!((stats.size, stats.evicted_capacity), (10_000, 0));
}

/// B1, B4: beyond its entries something makes way, and is counted.
#[tokio::test]
async fn what_makes_way_is_counted() {
    let cache = MokaCacheService::builder().capacity(Capacity::Entries(100)).build().unwrap();
    for n in 0..1_000 {
        cache.set(&n.to_string(), &n, None).await.unwrap();
    }
    let stats = cache.stats();
    assert!(stats.size <= 100, "{stats:?}");
    assert_eq!(stats.evicted_capacity + stats.size, 1_000, "{stats:?}");
}

/// B1: a capacity in bytes bounds bytes, whatever the number of entries.
#[tokio::test]
async fn a_capacity_in_bytes_bounds_bytes() {
    let cache = MokaCacheService::builder().capacity(Capacity::Bytes(100_000)).build().unwrap();
    for n in 0..100 {
        cache.set_bytes(&n.to_string(), value(10_000), Ttl::Default).await.unwrap();
    }
    let stats = cache.stats();
    assert!((1..=10).contains(&stats.size), "{stats:?}");
    for n in 0..1_000 {
        cache.set_bytes(&format!("small{n}"), value(1), Ttl::Default).await.unwrap();
    }
    assert!(cache.stats().size > 10, "small entries need less room: {:?}", cache.stats());
}

/// B4: hits, misses, and each cause of eviction by its name.
#[tokio::test]
async fn every_cause_is_counted_by_its_name() {
    let hand = ManualClock::new();
    let cache = MokaCacheService::builder().clock(hand.clock()).build().unwrap();
    cache.set("replaced", &1, None).await.unwrap();
    cache.set("replaced", &2, None).await.unwrap();
    cache.set("invalidated", &1, None).await.unwrap();
    cache.invalidate("invalidated").await.unwrap();
    cache.set("prefix/a", &1, None).await.unwrap();
    cache.invalidate_prefix("prefix/").await.unwrap();
    cache.set("expired", &1, Some(5)).await.unwrap();
    assert_eq!(cache.get("expired").await.unwrap(), Some(1));
    hand.advance(Duration::from_secs(5));
    assert_eq!(cache.get::<u32>("expired").await.unwrap(), None);
    assert_eq!(cache.get_many::<u32>(&["replaced", "absent"]).await.unwrap(), [Some(2), None]);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.size), (2, 2, 1));
    let causes =
        (stats.evicted_replaced, stats.evicted_invalidated, stats.evicted_expired, stats.evicted_capacity);
    assert_eq!(causes, (1, 2, 1, 0));
}

/// B2: the memory of expired entries is reclaimed though nobody reads them.
#[tokio::test]
async fn expired_entries_are_reclaimed() {
    let hand = ManualClock::new();
    let cache = MokaCacheService::builder().clock(hand.clock()).build().unwrap();
    for n in 0..2_000 {
        cache.set(&format!("short{n}"), &n, Some(1)).await.unwrap();
    }
    hand.advance(Duration::from_secs(1));
    // As many writes as a sweep may wait for.
    for n in 0..1_100 {
        cache.set("other", &n, None).await.unwrap();
    }
    let stats = cache.stats();
    assert_eq!((stats.size, stats.evicted_expired), (1, 2_000));
}

/// A7: options that cannot work are refused by name.
#[test]
fn impossible_options_are_refused() {
    let builder = MokaCacheService::builder;
    for (refused, name) in [
        (builder().capacity(Capacity::Entries(0)), "`capacity`"),
        (builder().capacity(Capacity::Bytes(0)), "`capacity`"),
        (builder().time_to_idle(Duration::ZERO), "`time_to_idle`"),
        (builder().time_to_idle(Duration::MAX), "`time_to_idle`"),
        (builder().max_value_bytes(0), "`max_value_bytes`"),
    ] {
        let error = refused.build().unwrap_err();
        assert!(
            matches!(error, CacheError::Configuration { .. }) && error.to_string().contains(name),
            "{error}"
        );
    }
}

#[derive(Debug, Default)]
struct Bus {
    sinks: Sinks,
    heard: Mutex<Vec<Invalidation>>,
}

#[async_trait::async_trait]
impl InvalidationBus for Bus {
    async fn publish(&self, message: &Invalidation) -> Result<(), CacheError> {
        self.heard.lock().unwrap().push(message.clone());
        self.sinks.apply(message);
        Ok(())
    }

    fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> Subscription {
        self.sinks.subscribe(sink)
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::new(Trust::always())
    }

    fn state(&self) -> BusState {
        BusState::default()
    }
}

/// I2: what is invalidated is announced, after it is gone; what is only set is not.
#[tokio::test]
async fn invalidations_are_announced() {
    let bus = Arc::new(Bus::default());
    let cache = MokaCacheService::builder().bus(bus.clone()).build().unwrap();
    assert!(cache.bus().is_some());
    cache.set("k", &1, None).await.unwrap();
    cache.invalidate("k").await.unwrap();
    cache.invalidate_many(&["a", "b"]).await.unwrap();
    cache.invalidate_many(&[]).await.unwrap();
    cache.invalidate_prefix("p").await.unwrap();
    let expected = [
        Invalidation::key("k"),
        Invalidation::Keys(vec!["a".into(), "b".into()]),
        Invalidation::Prefix("p".into()),
    ];
    assert_eq!(*bus.heard.lock().unwrap(), expected);
}
