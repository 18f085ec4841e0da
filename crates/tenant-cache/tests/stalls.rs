//! What a lookup waits for: never for another caller who is not polled, never beyond its limits, and never for the
//! answer of a refresh that is nobody's.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use cache_core::{BackendErrorKind, CacheError, CacheService, LoadError, ManualClock, Scope, Ttl};
use cache_moka::MokaCacheService;
use conformance::faults::{ChaosCache, Gate, Method};
use conformance::wait::until;
use futures_util::future::{join_all, poll_immediate};
use support::nodes::{key, soon};
use support::{Origin, of, plain, versions_with};
use tenant_cache::{Caches, Source, TenantCache};

struct Stage {
    hand: ManualClock,
    origin: Origin,
    far: Arc<ChaosCache>,
    caches: Caches,
}

impl Stage {
    fn new(origin: Origin) -> Self {
        let hand = ManualClock::new();
        let store = Arc::new(MokaCacheService::builder().clock(hand.clock()).build().unwrap());
        let far = Arc::new(ChaosCache::new(store));
        let caches = Caches::builder().far(far.clone()).clock(hand.clock()).build().unwrap();
        Self { hand, origin, far, caches }
    }
}

/// A caller that is held without being polled, as the loser of a `select!` is, holds nobody up: neither while it reads
/// the far tier nor while it loads.
#[tokio::test]
async fn a_caller_that_is_not_polled_holds_nobody_up() {
    let stage = Stage::new(Origin::open());
    stage.origin.commit("k", 1);
    let cache = versions_with(&stage.caches, &stage.origin, |domain| domain);
    of("acme", cache.get(&"other".to_owned())).await.unwrap();
    let (row, other) = (key(), "unread".to_owned());
    stage.far.set_gate(Method::GetBytes, Gate::Hold);
    let mut reading = Box::pin(of("acme", cache.get(&row)));
    assert!(poll_immediate(&mut reading).await.is_none());
    stage.far.set_gate(Method::GetBytes, Gate::Open);
    assert_eq!(plain(soon(of("acme", cache.get(&row))).await.unwrap()), Some(1), "beside one who reads");

    let held = Stage::new(Origin::gated());
    let slow = versions_with(&held.caches, &held.origin, |domain| domain);
    let mut loading = Box::pin(of("acme", slow.get(&other)));
    assert!(poll_immediate(&mut loading).await.is_none());
    held.origin.at_gate(1).await;
    let waiting = of("acme", slow.get(&other));
    held.origin.release(1);
    assert_eq!(plain(soon(waiting).await.unwrap()), None, "beside one who loads");
    assert_eq!(held.origin.loads(), 1, "the load is shared");
}

/// A loader that never ends, and many more keys than loads that may go on in the background.
fn hanging(caches: &Caches, limit: Duration) -> TenantCache<u32, u32> {
    caches
        .domain("hanging")
        .scope(Scope::Global)
        .capacity(10_000)
        .jitter(0.0)
        .ttl(Duration::from_secs(60))
        .stale_if_error(Duration::from_secs(600))
        .hard_timeout(limit)
        .load(|_: u32| std::future::pending::<Result<Option<u32>, std::io::Error>>())
        .unwrap()
}

#[tokio::test]
async fn a_hard_timeout_holds_however_many_keys_hang() {
    for caches in [Caches::in_memory(), Stage::new(Origin::open()).caches] {
        let cache = hanging(&caches, Duration::from_millis(50));
        let keys: Vec<u32> = (0..400).collect();
        for found in soon(join_all(keys.iter().map(|key| cache.get(key)))).await {
            assert!(matches!(found, Err(CacheError::Load(LoadError::TimedOut { .. }))), "{found:?}");
        }
    }
}

#[tokio::test]
async fn a_soft_timeout_serves_what_is_kept_however_many_keys_hang() {
    let stage = Stage::new(Origin::gated());
    let hour = Duration::from_secs(3_600);
    for caches in [Caches::builder().clock(stage.hand.clock()).build().unwrap(), stage.caches.clone()] {
        let cache = versions_with(&caches, &stage.origin, |domain| {
            domain
                .capacity(10_000)
                .ttl(hour)
                .near_ttl(hour)
                .stale_if_error(hour)
                .soft_timeout(Duration::from_millis(50))
        });
        let keys: Vec<String> = (0..400).map(|n| n.to_string()).collect();
        for key in &keys {
            stage.origin.commit(key, 1);
            of("acme", cache.insert(key, 1)).await.unwrap();
        }
        stage.hand.advance(hour + Duration::from_secs(1));
        let asking = join_all(keys.iter().map(|key| of("acme", cache.lookup(key))));
        for found in soon(asking).await {
            let found = found.unwrap();
            assert_eq!((plain(found.value), found.stale), (Some(1), true));
        }
    }
}

/// What a load in the background costs when nobody's limit is over any more: nothing. Beyond the bound it ends with its
/// callers, and its place is free for the next.
#[tokio::test]
async fn a_load_that_may_not_go_on_ends_with_its_callers() {
    let caches = Caches::in_memory();
    let running = Arc::new(());
    let held = Arc::clone(&running);
    let cache: TenantCache<u32, u32> = caches
        .domain("counted")
        .scope(Scope::Global)
        .hard_timeout(Duration::from_millis(20))
        .load(move |_: u32| {
            let held = Arc::clone(&held);
            async move {
                let _held = held;
                std::future::pending::<Result<Option<u32>, std::io::Error>>().await
            }
        })
        .unwrap();
    let keys: Vec<u32> = (0..300).collect();
    soon(join_all(keys.iter().map(|key| cache.get(key)))).await;
    // Ours, the loader's, and one for each load that goes on.
    until("the end of the others", || Arc::strong_count(&running) <= 2 + 256).await;
    drop(cache);
}

/// A refresh in the background that is held at the far tier, of an entry that memory does not keep; the entry is lost
/// meanwhile without a word, and a further lookup waits for the refresh.
async fn joined_to_a_refresh(
    stage: &Stage,
) -> tokio::task::JoinHandle<Result<tenant_cache::Found<u64>, CacheError>> {
    let minute = Duration::from_secs(60);
    let cache = versions_with(&stage.caches, &stage.origin, |domain| {
        domain.ttl(minute).near_ttl(Duration::ZERO).stale_while_revalidate(minute * 10)
    });
    stage.origin.commit("k", 1);
    of("acme", cache.get(&key())).await.unwrap();
    stage.hand.advance(minute * 2);
    stage.far.set_gate(Method::GetOrLease, Gate::Hold);
    assert_eq!(plain(of("acme", cache.get(&key())).await.unwrap()), Some(1), "the stale value");
    soon(stage.far.at_gate(Method::GetOrLease, 1)).await;
    stage.far.set_bytes("acme:rows:k", "".into(), Ttl::For(Duration::ZERO)).await.unwrap();
    let (reads, leases) = (stage.far.calls(Method::GetBytes), stage.far.calls(Method::GetOrLease));
    let lookup = tokio::spawn(async move { of("acme", cache.lookup(&key())).await });
    until("the lookup", || stage.far.calls(Method::GetBytes) > reads).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        stage.far.calls(Method::GetOrLease),
        leases,
        "the lookup waits for the refresh and asks nothing itself"
    );
    lookup
}

/// The refresh finds nothing to refresh, and that is not "there is no such thing".
#[tokio::test]
async fn a_refresh_that_finds_nothing_to_do_is_no_answer() {
    let stage = Stage::new(Origin::open());
    let lookup = joined_to_a_refresh(&stage).await;
    stage.far.set_gate(Method::GetOrLease, Gate::Open);
    let found = soon(lookup).await.unwrap().unwrap();
    assert_eq!((plain(found.value), found.source), (Some(1), Source::Origin));
}

/// The refresh fails for the far tier, and a far tier that fails is no error of a lookup.
#[tokio::test]
async fn a_refresh_that_fails_is_no_answer() {
    let stage = Stage::new(Origin::open());
    let lookup = joined_to_a_refresh(&stage).await;
    stage.far.set_gate(Method::GetOrLease, Gate::Error(BackendErrorKind::Unavailable));
    let found = soon(lookup).await.unwrap().unwrap();
    assert_eq!((plain(found.value), found.source), (Some(1), Source::Origin));
}
