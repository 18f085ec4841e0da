//! What lasts and what does not: idle entries, leases under pressure, memory, and calls from many threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cache_core::bus::Sinks;
use cache_core::prelude::*;
use cache_core::{
    BackendError, BackendErrorKind, BusState, Invalidation, InvalidationSink, LeaseToken, Lookup,
    ManualClock, Subscription, Trust,
};
use cache_moka::{Capacity, MokaCacheService};

const LEASE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

/// B1, B2: an entry that nobody reads ends after the idle time, to the service's clock; a read of any kind
/// prolongs it, and never beyond its own life.
#[tokio::test]
async fn an_idle_entry_ends_and_a_read_one_lasts_its_life() {
    let hand = ManualClock::new();
    let cache = MokaCacheService::builder().clock(hand.clock()).time_to_idle(SECOND * 10).build().unwrap();
    for key in ["idle", "got", "looked up"] {
        cache.set(key, &1, Some(25)).await.unwrap();
    }
    hand.advance(SECOND * 9);
    assert_eq!(cache.get_many::<u32>(&["got"]).await.unwrap(), [Some(1)]);
    assert!(matches!(
        cache.get_or_lease("looked up", LeaseToken::random(), LEASE).await.unwrap(),
        Lookup::Hit(_)
    ));
    hand.advance(SECOND - Duration::from_nanos(1));
    assert_eq!(cache.stats().size, 3);
    hand.advance(Duration::from_nanos(1));
    assert_eq!(cache.get::<u32>("idle").await.unwrap(), None);
    for key in ["got", "looked up"] {
        assert_eq!(cache.get(key).await.unwrap(), Some(1), "{key}");
        hand.advance(SECOND * 7);
        assert_eq!(cache.get(key).await.unwrap(), Some(1), "{key}");
    }
    hand.advance(SECOND);
    assert_eq!(cache.get::<u32>("got").await.unwrap(), None, "its own life is over");
    assert_eq!((cache.stats().evicted_expired, cache.stats().evicted_capacity), (2, 0));
}

/// A12: a full cache evicts values and never a lease: a claim that was granted stands until it ends.
#[tokio::test]
async fn leases_outlast_any_pressure_on_the_values() {
    let cache = MokaCacheService::builder().capacity(Capacity::Entries(1)).build().unwrap();
    let mut claims = Vec::new();
    for n in 0..1_000 {
        match cache.get_or_lease(&n.to_string(), LeaseToken::random(), LEASE).await.unwrap() {
            Lookup::Granted(claim) => claims.push(claim),
            other => panic!("{n}: {other:?}"),
        }
        cache.set(&format!("value{n}"), &n, None).await.unwrap();
    }
    for (n, claim) in claims.iter().enumerate() {
        let key = n.to_string();
        assert_eq!(cache.get_or_lease(&key, LeaseToken::random(), LEASE).await.unwrap(), Lookup::Busy, "{n}");
        assert!(cache.fill(&key, claim, Bytes::from_static(b"1"), Ttl::Default).await.unwrap(), "{n}");
    }
    let stats = cache.stats();
    assert!(stats.size <= 1, "{stats:?}");
    assert_eq!((stats.leases_granted, stats.leases_busy), (1_000, 1_000));
}

/// B4: plain reads and look-ups with a view to a lease are counted apart.
#[tokio::test]
async fn lookups_are_counted_apart_from_reads() {
    let cache = MokaCacheService::default();
    assert_eq!(cache.get::<u32>("k").await.unwrap(), None);
    let Lookup::Granted(claim) = cache.get_or_lease("k", LeaseToken::random(), LEASE).await.unwrap() else {
        panic!("the lease is free");
    };
    assert_eq!(cache.get_or_lease("k", LeaseToken::random(), LEASE).await.unwrap(), Lookup::Busy);
    assert!(cache.fill("k", &claim, Bytes::from_static(b"1"), Ttl::Default).await.unwrap());
    assert!(matches!(cache.get_or_lease("k", LeaseToken::random(), LEASE).await.unwrap(), Lookup::Hit(_)));
    assert_eq!(cache.get("k").await.unwrap(), Some(1));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (1, 1));
    assert_eq!((stats.lease_hits, stats.leases_granted, stats.leases_busy), (1, 1, 1));
}

/// Bytes that tell when their memory is given back.
struct Tracked(#[expect(dead_code, reason = "held, not read")] Arc<()>);

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        b"tracked"
    }
}

/// B2, B3: memory is given back by what removes it: a prefix, a sweep, and the end of the service.
#[tokio::test]
async fn memory_is_given_back() {
    let (hand, alive) = (ManualClock::new(), Arc::new(()));
    let cache = MokaCacheService::builder().clock(hand.clock()).build().unwrap();
    let fill = async |prefix: &str| {
        for n in 0..50 {
            let value = Bytes::from_owner(Tracked(alive.clone()));
            cache.set_bytes(&format!("{prefix}/{n}"), value, Ttl::from(Some(60))).await.unwrap();
        }
        assert_eq!(Arc::strong_count(&alive), 51);
    };
    fill("a").await;
    assert_eq!(cache.invalidate_prefix("a/").await.unwrap(), 50);
    assert_eq!(Arc::strong_count(&alive), 1, "after the invalidation");
    fill("b").await;
    hand.advance(SECOND * 60);
    cache.sweep();
    assert_eq!(Arc::strong_count(&alive), 1, "after the sweep");
    fill("c").await;
    drop(cache);
    assert_eq!(Arc::strong_count(&alive), 1, "after the service");
}

/// B2: entries that expire are reclaimed by writes to other keys, one by one, with no pause for a sweep.
#[tokio::test]
async fn a_mixed_load_keeps_no_expired_entries() {
    let hand = ManualClock::new();
    let cache = MokaCacheService::builder().clock(hand.clock()).build().unwrap();
    for round in 0..50 {
        for n in 0..200 {
            cache.set(&format!("{round}/{n}"), &n, Some(10)).await.unwrap();
        }
        hand.advance(SECOND);
    }
    // Ten rounds live; what expired since the writers last came by is at most as much again.
    let stats = cache.stats();
    assert!((2_000..=4_000).contains(&stats.size), "{stats:?}");
    assert_eq!(stats.size + stats.evicted_expired, 10_000, "{stats:?}");
    cache.sweep();
    assert_eq!(cache.stats().size, 1_800);
}

/// B3: walks over the keys and writers of the same keys do not wait for each other for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn walks_and_writers_do_not_block_each_other() {
    let cache = Arc::new(MokaCacheService::builder().capacity(Capacity::Entries(500)).build().unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..3 {
        let (cache, stop) = (cache.clone(), stop.clone());
        tasks.spawn(async move {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let key = format!("{}/{}", (n + task) % 7, n % 300);
                cache.set(&key, &n, Duration::from_millis(1)).await.unwrap();
                cache.get::<u64>(&key).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
    }
    let walks = async {
        for n in 0..1_500 {
            cache.invalidate_prefix(&format!("{}/", n % 7)).await.unwrap();
            cache.sweep();
            tokio::task::yield_now().await;
        }
        stop.store(true, Ordering::Relaxed);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), walks).await.expect("nobody waits for ever");
}

/// A bus nobody can be reached on.
#[derive(Debug, Default)]
struct DeadBus(Sinks);

#[async_trait::async_trait]
impl InvalidationBus for DeadBus {
    async fn publish(&self, message: &Invalidation) -> Result<(), CacheError> {
        self.0.apply(message);
        Err(BackendError::new(BackendErrorKind::Unavailable, "publish", "").into())
    }

    fn subscribe(&self, sink: Arc<dyn InvalidationSink>) -> Subscription {
        self.0.subscribe(sink)
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::new(Trust::none())
    }

    fn state(&self) -> BusState {
        BusState::default()
    }
}

/// P6: an invalidation that could not be announced is an error, and has still removed what was here.
#[tokio::test]
async fn an_announcement_that_fails_is_an_error_after_the_removal() {
    let cache = MokaCacheService::builder().bus(Arc::new(DeadBus::default())).build().unwrap();
    for way in 0..3 {
        cache.set("k", &1, None).await.unwrap();
        let told = match way {
            0 => cache.invalidate("k").await,
            1 => cache.invalidate_many(&["k"]).await,
            _ => cache.invalidate_prefix("k").await.map(drop),
        };
        assert!(matches!(told, Err(CacheError::Backend(_))), "{told:?}");
        assert_eq!(cache.get::<u32>("k").await.unwrap(), None);
    }
}
