//! What a newer answer replaces is gone, also where the newer one is not to be stored or arrives late.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cache_core::Scope;
use cache_moka::MokaCacheService;
use concurrency::LocalBus;
use conformance::faults::{ChaosCache, Gate, Method};
use support::nodes::{key, soon};
use support::{Origin, of, plain, versions_with};
use tenant_cache::{Caches, LoadRequest, Loaded, NegativeTier, TenantCache};

/// What the loader answers next.
#[derive(Debug, Clone, Default)]
struct Answer(Arc<AtomicU64>);

const VALUE: u64 = 1;
const FOR_ONCE: u64 = 2;
const ABSENT: u64 = 3;

fn instance(store: &Arc<MokaCacheService>, answer: &Answer) -> TenantCache<u32, u64> {
    let answer = answer.clone();
    Caches::builder()
        .far(store.clone())
        .build()
        .unwrap()
        .domain("answers")
        .scope(Scope::Global)
        .negative_tier(NegativeTier::Near)
        .load_with(move |_: LoadRequest<u32, u64>| {
            let answer = answer.0.load(Ordering::SeqCst);
            async move {
                Ok::<_, std::io::Error>(match answer {
                    ABSENT => Loaded::absent(),
                    FOR_ONCE => Loaded::value(FOR_ONCE).ttl(Duration::ZERO),
                    value => Loaded::value(value),
                })
            }
        })
        .unwrap()
}

/// A forced load whose answer is not to be stored does not leave the older value behind, in no tier of no instance.
#[tokio::test]
async fn a_refresh_that_is_not_stored_removes_what_it_replaces() {
    for (next, expected) in [(FOR_ONCE, Some(FOR_ONCE)), (ABSENT, None)] {
        let bus: Arc<dyn cache_core::InvalidationBus> = Arc::new(LocalBus::new());
        let store = Arc::new(MokaCacheService::builder().bus(bus).build().unwrap());
        let answer = Answer::default();
        answer.0.store(VALUE, Ordering::SeqCst);
        let (here, there) = (instance(&store, &answer), instance(&store, &answer));
        for cache in [&here, &there] {
            assert_eq!(plain(cache.get(&1).await.unwrap()), Some(VALUE));
        }
        answer.0.store(next, Ordering::SeqCst);
        assert_eq!(plain(here.refresh(&1).await.unwrap()), expected);
        for cache in [&here, &there] {
            assert_eq!(plain(cache.get(&1).await.unwrap()), expected, "the older value is gone");
        }
    }
}

/// The same when the refresh is one in the background.
#[tokio::test]
async fn a_background_refresh_that_is_not_stored_removes_what_it_replaces() {
    let hand = cache_core::ManualClock::new();
    let store = Arc::new(MokaCacheService::builder().clock(hand.clock()).build().unwrap());
    let answer = Answer::default();
    answer.0.store(VALUE, Ordering::SeqCst);
    let loaded = answer.clone();
    let cache: TenantCache<u32, u64> = Caches::builder()
        .far(store)
        .clock(hand.clock())
        .build()
        .unwrap()
        .domain("answers")
        .scope(Scope::Global)
        .jitter(0.0)
        .ttl(Duration::from_secs(60))
        .near_ttl(Duration::from_secs(600))
        .stale_while_revalidate(Duration::from_secs(600))
        .load_with(move |_: LoadRequest<u32, u64>| {
            let answer = loaded.0.load(Ordering::SeqCst);
            async move {
                let life = Duration::from_secs(if answer == FOR_ONCE { 0 } else { 60 });
                Ok::<_, std::io::Error>(Loaded::value(answer).ttl(life))
            }
        })
        .unwrap();
    assert_eq!(plain(cache.get(&1).await.unwrap()), Some(VALUE));
    answer.0.store(FOR_ONCE, Ordering::SeqCst);
    hand.advance(Duration::from_secs(90));
    conformance::wait::eventually("the older value is gone", async || {
        plain(cache.get(&1).await.unwrap()) == Some(FOR_ONCE)
    })
    .await;
}

/// An insert whose value arrives late, after somebody else's change was acknowledged, is refused.
#[tokio::test]
async fn an_insert_that_arrives_late_is_refused() {
    let bus: Arc<dyn cache_core::InvalidationBus> = Arc::new(LocalBus::new());
    let store = Arc::new(MokaCacheService::builder().bus(bus).build().unwrap());
    let far = Arc::new(ChaosCache::new(store.clone()));
    let origin = Origin::open();
    let node = |far: Arc<dyn cache_core::CacheService>| {
        let caches = Caches::builder().far(far).build().unwrap();
        versions_with(&caches, &origin, |domain| domain)
    };
    let (slow, quick) = (node(far.clone()), node(store));
    origin.commit("k", 1);
    for cache in [&slow, &quick] {
        of("acme", cache.get(&key())).await.unwrap();
    }
    origin.commit("k", 2);
    far.set_gates(&[Method::Fill, Method::SetBytes], Gate::Hold);
    let inserting = slow.clone();
    let insert = tokio::spawn(async move { of("acme", inserting.insert(&key(), 2)).await });
    let arrived = async {
        tokio::select! {
            () = far.at_gate(Method::Fill, 1) => {}
            () = far.at_gate(Method::SetBytes, 1) => {}
        }
    };
    soon(arrived).await;
    origin.commit("k", 3);
    of("acme", quick.invalidate(&key())).await.unwrap();
    far.set_all(Gate::Open);
    soon(insert).await.unwrap().unwrap();
    for cache in [&slow, &quick] {
        assert_eq!(
            plain(of("acme", cache.get(&key())).await.unwrap()),
            Some(3),
            "the change that came later"
        );
    }
}
