//! What is served while a newer value is not there yet: refresh ahead, stale while revalidate, stale on failure,
//! soft and hard time-outs. Each with memory alone, and with memory in front of a far tier.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, Clock, LoadError, ManualClock};
use conformance::faults::{ChaosCache, Gate, Method};
use conformance::model::ModelCache;
use support::{Origin, of, plain, versions_with};
use tenant_cache::{Caches, DomainBuilder, Found, Source, TenantCache};

const TTL: Duration = Duration::from_secs(60);

type Options = fn(DomainBuilder<String, u64>) -> DomainBuilder<String, u64>;

struct Set {
    name: &'static str,
    hand: ManualClock,
    origin: Origin,
    far: Arc<ChaosCache>,
    caches: Caches,
    cache: TenantCache<String, u64>,
    options: Options,
}

/// The same cache on memory alone, and on memory in front of a far tier that is asked every time.
fn setups(origin: fn() -> Origin, options: Options) -> Vec<Set> {
    let set = |name, tiered: bool| {
        let (hand, origin) = (ManualClock::new(), origin());
        let far = far(hand.clock());
        let builder = Caches::builder().clock(hand.clock());
        let caches = if tiered { builder.far(far.clone()) } else { builder }.build().unwrap();
        let cache = versions_with(&caches, &origin, |domain| options(domain.ttl(TTL)));
        Set { name, hand, origin, far, caches, cache, options }
    };
    vec![set("memory", false), set("far", true)]
}

fn far(clock: Clock) -> Arc<ChaosCache> {
    Arc::new(ChaosCache::new(Arc::new(ModelCache::new(clock, 1 << 20))))
}

fn key() -> String {
    "k".to_owned()
}

impl Set {
    async fn try_lookup(&self) -> Result<Found<u64>, CacheError> {
        of("acme", self.cache.lookup(&key())).await
    }

    /// The value, and whether it is stale.
    async fn lookup(&self) -> (Option<u64>, bool) {
        let found = self.try_lookup().await.unwrap();
        (plain(found.value), found.stale)
    }

    /// Waits until the background has brought memory a value.
    async fn until(&self, value: u64) {
        for _ in 0..10_000 {
            let known = of("acme", async { self.cache.peek(&key()) }).await.unwrap();
            if plain(known) == Some(value) {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{}: memory never got {value}", self.name);
    }

    fn secs(&self, secs: u64) {
        self.hand.advance(Duration::from_secs(secs));
    }

    /// Another instance on the same far tier.
    fn other(&self) -> TenantCache<String, u64> {
        let caches = Caches::builder().clock(self.hand.clock()).far(self.far.clone()).build().unwrap();
        versions_with(&caches, &self.origin, |domain| (self.options)(domain.ttl(TTL)))
    }
}

/// Lets what was spawned run.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// E7: past its life a value is served, flagged, and refreshed once in the background; past the limit it is not.
#[tokio::test]
async fn stale_while_revalidate_serves_and_refreshes_once() {
    for s in setups(Origin::open, |domain| domain.stale_while_revalidate(Duration::from_secs(30))) {
        s.origin.commit("k", 1);
        assert_eq!(s.lookup().await, (Some(1), false), "{}", s.name);
        s.origin.commit("k", 2);
        s.secs(61);
        assert_eq!(s.lookup().await, (Some(1), true), "{}", s.name);
        assert_eq!(s.lookup().await, (Some(1), true), "{}: while it is refreshed", s.name);
        s.until(2).await;
        assert_eq!((s.lookup().await, s.origin.loads()), ((Some(2), false), 2), "{}", s.name);
        s.origin.commit("k", 3);
        s.secs(91);
        assert_eq!(s.lookup().await, (Some(3), false), "{}: beyond the limit it is loaded", s.name);
        let stats = s.cache.stats();
        assert_eq!((stats.stale_served, stats.refreshes), (2, 1), "{}", s.name);
    }
}

/// E7, SA8: many hits on a stale value begin one refresh; a lookup that finds nothing to serve waits for it.
#[tokio::test]
async fn a_hundred_stale_hits_begin_one_refresh() {
    for s in setups(Origin::gated, |domain| domain.stale_while_revalidate(Duration::from_secs(30))) {
        s.origin.commit("k", 1);
        s.origin.release(1);
        s.lookup().await;
        s.secs(89);
        for _ in 0..100 {
            assert_eq!(s.lookup().await, (Some(1), true), "{}", s.name);
            tokio::task::yield_now().await;
        }
        s.origin.at_gate(1).await;
        assert_eq!(s.origin.loads(), 2, "{}", s.name);
        // Too old to be served by now, and the refresh is still on its way.
        s.secs(1);
        let waits = {
            let cache = s.cache.clone();
            tokio::spawn(async move { of("acme", async { cache.lookup(&key()).await }).await })
        };
        settle().await;
        assert_eq!(s.origin.loads(), 2, "{}: joined", s.name);
        s.origin.release(1);
        assert_eq!(plain(waits.await.unwrap().unwrap().value), Some(1), "{}", s.name);
    }
}

/// E7: a hit late in the life of a value refreshes it ahead, so that it never expires for those who ask often.
#[tokio::test]
async fn refresh_ahead_renews_what_is_asked_for() {
    for s in setups(Origin::open, |domain| domain.refresh_ahead(0.8).near_ttl(TTL)) {
        s.origin.commit("k", 1);
        s.lookup().await;
        s.secs(47);
        assert_eq!(s.lookup().await, (Some(1), false), "{}", s.name);
        settle().await;
        assert_eq!(s.origin.loads(), 1, "{}: too early", s.name);
        s.origin.commit("k", 2);
        s.secs(2);
        assert_eq!(s.lookup().await, (Some(1), false), "{}: fresh still", s.name);
        s.until(2).await;
        s.secs(40);
        assert_eq!((s.lookup().await, s.origin.loads()), ((Some(2), false), 2), "{}: a new life", s.name);
    }
}

/// E7: what memory may not keep is not due for that: a fresh far entry is answered, and nothing is refreshed.
#[tokio::test]
async fn without_a_life_in_memory_nothing_is_refreshed() {
    let s = setups(Origin::open, |domain| domain.near_ttl(Duration::ZERO)).remove(1);
    s.origin.commit("k", 1);
    for _ in 0..10 {
        assert_eq!(s.lookup().await, (Some(1), false));
        settle().await;
    }
    let stats = s.cache.stats();
    assert_eq!((stats.loads, stats.far_hits, stats.refreshes), (1, 9, 0));
}

/// E7, SB6: a refresh ahead that fails leaves the fresh value as it is, is counted, and is not tried again at once.
#[tokio::test]
async fn a_failed_refresh_ahead_is_tried_later() {
    for s in setups(Origin::open, |domain| domain.refresh_ahead(0.5).near_ttl(TTL)) {
        s.origin.commit("k", 1);
        s.lookup().await;
        s.secs(31);
        s.origin.set_broken(true);
        for _ in 0..20 {
            assert_eq!(s.lookup().await, (Some(1), false), "{}", s.name);
            settle().await;
        }
        assert_eq!((s.origin.loads(), s.cache.stats().load_failures), (2, 1), "{}", s.name);
        s.secs(6);
        s.origin.set_broken(false);
        s.origin.commit("k", 2);
        s.lookup().await;
        s.until(2).await;
    }
}

/// E7: of several instances one refreshes; the others find what it stored.
#[tokio::test]
async fn one_instance_refreshes_for_all() {
    let s = setups(Origin::gated, |domain| domain.stale_while_revalidate(Duration::from_secs(30))).remove(1);
    let other = s.other();
    let elsewhere = async || of("acme", other.lookup(&key())).await.unwrap();
    s.origin.commit("k", 1);
    s.origin.release(1);
    s.lookup().await;
    s.origin.commit("k", 2);
    s.secs(61);
    assert_eq!(s.lookup().await, (Some(1), true));
    s.origin.at_gate(1).await;
    for _ in 0..10 {
        assert!(elsewhere().await.stale);
        s.hand.advance(Duration::from_millis(150));
        settle().await;
    }
    assert_eq!(s.origin.loads(), 2, "the others look again, and do not load");
    s.origin.release(1);
    s.until(2).await;
    s.hand.advance(Duration::from_millis(150));
    elsewhere().await;
    settle().await;
    assert_eq!((plain(elsewhere().await.value), s.origin.loads()), (Some(2), 2));
}

/// SB1, E7: the load fails and a value is there: it is served, flagged; for a while nothing is loaded, then one is.
#[tokio::test]
async fn a_failed_load_serves_the_stale_value_and_is_throttled() {
    for s in setups(Origin::open, |domain| domain.stale_if_error(Duration::from_secs(600))) {
        s.origin.commit("k", 1);
        s.lookup().await;
        s.secs(61);
        s.origin.set_broken(true);
        assert_eq!(s.lookup().await, (Some(1), true), "{}", s.name);
        for _ in 0..50 {
            assert_eq!(s.lookup().await, (Some(1), true), "{}", s.name);
        }
        assert_eq!(s.origin.loads(), 2, "{}: throttled", s.name);
        s.secs(5);
        assert_eq!(s.lookup().await, (Some(1), true), "{}", s.name);
        assert_eq!(s.origin.loads(), 3, "{}: one more", s.name);
        s.secs(5);
        s.origin.set_broken(false);
        s.origin.commit("k", 2);
        assert_eq!((s.lookup().await, s.origin.loads()), ((Some(2), false), 4), "{}: recovered", s.name);
        assert_eq!(s.cache.stats().stale_served, 52, "{}", s.name);
    }
}

/// SB2: beyond the limit a failed load is an error again.
#[tokio::test]
async fn too_old_a_value_is_not_served_on_failure() {
    for s in setups(Origin::open, |domain| domain.stale_if_error(Duration::from_secs(30))) {
        s.origin.commit("k", 1);
        s.lookup().await;
        s.origin.set_broken(true);
        s.secs(89);
        assert_eq!(s.lookup().await, (Some(1), true), "{}", s.name);
        s.secs(2);
        assert!(matches!(s.try_lookup().await, Err(CacheError::Load(_))), "{}", s.name);
    }
}

/// SB3: the fallback speaks only when there is nothing stale.
#[tokio::test]
async fn the_fallback_is_used_only_if_nothing_is_stale() {
    let options: Options = |domain| domain.stale_if_error(Duration::from_secs(30)).fallback(|_, _| Some(99));
    for s in setups(Origin::open, options) {
        s.origin.commit("k", 1);
        s.origin.set_broken(true);
        assert_eq!(s.try_lookup().await.unwrap().source, Source::Fallback, "{}", s.name);
        s.origin.set_broken(false);
        s.lookup().await;
        s.secs(61);
        s.origin.set_broken(true);
        assert_eq!(s.lookup().await, (Some(1), true), "{}", s.name);
        s.secs(60);
        let found = s.try_lookup().await.unwrap();
        assert_eq!((plain(found.value), found.source), (Some(99), Source::Fallback), "{}", s.name);
    }
}

/// P1, P3, SD3: what was invalidated is gone, and is not served when the load fails.
#[tokio::test]
async fn an_invalidated_value_is_never_served_on_failure() {
    for s in setups(Origin::open, |domain| domain.stale_if_error(Duration::from_secs(600))) {
        for kind in ["key", "domain", "tag"] {
            s.origin.set_broken(false);
            s.origin.commit("k", 1);
            of("acme", s.cache.refresh(&key())).await.unwrap();
            s.origin.set_broken(true);
            match kind {
                "key" => of("acme", s.cache.invalidate(&key())).await.unwrap(),
                "domain" => of("acme", s.cache.invalidate_all()).await.unwrap(),
                _ => s.caches.invalidate_everything().await.unwrap(),
            }
            assert!(s.try_lookup().await.is_err(), "{}: {kind}", s.name);
        }
    }
}

/// SB12: "there is no such thing" is not kept beyond its own life, whatever is kept of values.
#[tokio::test]
async fn what_does_not_exist_is_not_served_stale() {
    let options: Options = |domain| {
        domain.stale_if_error(Duration::from_secs(600)).stale_while_revalidate(Duration::from_secs(600))
    };
    for s in setups(Origin::open, options) {
        assert_eq!(s.lookup().await, (None, false), "{}", s.name);
        s.secs(31);
        s.origin.commit("k", 1);
        assert_eq!(s.lookup().await, (Some(1), false), "{}", s.name);
    }
}

/// SA7: a slow load and a stale value: each caller gets the stale one after the soft time-out, in two waves there is
/// one load, and it ends in the background and is stored.
#[tokio::test(start_paused = true)]
async fn a_soft_timeout_serves_stale_and_does_not_break_the_flight() {
    let options: Options =
        |domain| domain.stale_if_error(Duration::from_secs(600)).soft_timeout(Duration::from_millis(100));
    for s in setups(Origin::gated, options) {
        s.origin.commit("k", 1);
        s.origin.release(1);
        s.lookup().await;
        s.origin.commit("k", 2);
        s.secs(61);
        for wave in 0..2 {
            let callers = (0..10).map(|_| s.lookup());
            for answer in futures_util::future::join_all(callers).await {
                assert_eq!(answer, (Some(1), true), "{}: wave {wave}", s.name);
            }
        }
        assert_eq!(s.origin.loads(), 2, "{}", s.name);
        s.origin.release(1);
        s.until(2).await;
        assert_eq!((s.lookup().await, s.origin.loads()), ((Some(2), false), 2), "{}", s.name);
    }
}

/// SB4: with nothing stale to serve a soft time-out does not apply.
#[tokio::test(start_paused = true)]
async fn a_soft_timeout_without_a_stale_value_waits() {
    let options: Options =
        |domain| domain.stale_if_error(Duration::from_secs(600)).soft_timeout(Duration::from_millis(100));
    for s in setups(Origin::gated, options) {
        s.origin.commit("k", 1);
        let (answer, ()) = tokio::join!(s.lookup(), async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            s.origin.release(1);
        });
        assert_eq!(answer, (Some(1), false), "{}", s.name);
    }
}

/// SB5: a hard time-out is an error to the caller; the load ends in the background and fills every tier.
#[tokio::test(start_paused = true)]
async fn a_hard_timeout_fails_and_the_load_fills_the_tiers_later() {
    for s in setups(Origin::gated, |domain| domain.hard_timeout(Duration::from_millis(100))) {
        s.origin.commit("k", 1);
        for _ in 0..2 {
            let error = s.try_lookup().await.unwrap_err();
            assert!(matches!(error, CacheError::Load(LoadError::TimedOut { .. })), "{}: {error}", s.name);
        }
        assert_eq!(s.origin.loads(), 1, "{}: the second joined", s.name);
        s.origin.release(1);
        s.until(1).await;
        assert_eq!((s.lookup().await, s.origin.loads()), ((Some(1), false), 1), "{}", s.name);
        if s.name == "far" {
            let found = of("acme", s.other().lookup(&key())).await.unwrap();
            assert_eq!((plain(found.value), found.source), (Some(1), Source::Far));
        }
    }
}

/// SE6, P3: an invalidation while a load goes on in the background: what that loads is stored nowhere, and nobody who
/// comes afterwards gets it.
#[tokio::test(start_paused = true)]
async fn a_load_that_outlived_its_caller_cannot_undo_an_invalidation() {
    for s in setups(Origin::gated, |domain| domain.hard_timeout(Duration::from_millis(100))) {
        for kind in ["key", "domain", "all"] {
            let before = s.origin.loads();
            s.origin.commit("k", 1);
            s.try_lookup().await.unwrap_err();
            s.origin.commit("k", 2);
            match kind {
                "key" => of("acme", s.cache.invalidate(&key())).await.unwrap(),
                "domain" => of("acme", s.cache.invalidate_all()).await.unwrap(),
                _ => s.caches.invalidate_everything().await.unwrap(),
            }
            s.origin.release(2);
            assert_eq!(s.lookup().await, (Some(2), false), "{}: {kind}", s.name);
            settle().await;
            assert_eq!(s.lookup().await, (Some(2), false), "{}: {kind}, afterwards", s.name);
            assert_eq!(s.origin.loads(), before + 2, "{}: {kind}", s.name);
            of("acme", s.cache.invalidate(&key())).await.unwrap();
        }
    }
}

/// SE6, P3: the same while a stale value is being refreshed in the background.
#[tokio::test]
async fn a_background_refresh_cannot_undo_an_invalidation() {
    for s in setups(Origin::gated, |domain| domain.stale_while_revalidate(Duration::from_secs(30))) {
        for kind in ["key", "domain", "all"] {
            s.origin.commit("k", 1);
            s.origin.release(1);
            s.lookup().await;
            s.secs(61);
            assert_eq!(s.lookup().await, (Some(1), true), "{}: {kind}", s.name);
            s.origin.at_gate(1).await;
            s.origin.commit("k", 2);
            match kind {
                "key" => of("acme", s.cache.invalidate(&key())).await.unwrap(),
                "domain" => of("acme", s.cache.invalidate_all()).await.unwrap(),
                _ => s.caches.invalidate_everything().await.unwrap(),
            }
            s.origin.release(2);
            assert_eq!(s.lookup().await, (Some(2), false), "{}: {kind}", s.name);
            settle().await;
            assert_eq!(s.lookup().await, (Some(2), false), "{}: {kind}, afterwards", s.name);
            of("acme", s.cache.invalidate(&key())).await.unwrap();
        }
    }
}

/// SC4, SC10: a far tier that does not answer in time costs its deadline and no more; a value that memory still keeps
/// is served at once.
#[tokio::test]
async fn a_failing_far_tier_is_left_out() {
    let s = setups(Origin::open, |domain| domain.stale_if_error(Duration::from_secs(600))).remove(1);
    s.origin.commit("k", 1);
    s.lookup().await;
    s.far.set_gates(&Method::READS, Gate::Error(cache_core::BackendErrorKind::Unavailable));
    s.secs(11);
    assert_eq!(s.lookup().await, (Some(1), false), "loaded, since nobody else can tell");
    assert_eq!((s.origin.loads(), s.cache.stats().uncached_loads), (2, 1));
}
