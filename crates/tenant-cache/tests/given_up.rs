//! Whoever leaves, at whichever step, leaves no lease behind: the next lookup loads at once and stores.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use cache_core::{
    BackendErrorKind, CacheError, CacheService, Claim, LeaseToken, LoadError, Lookup, ManualClock,
};
use cache_moka::MokaCacheService;
use conformance::faults::{ChaosCache, Gate, Method};
use conformance::wait::eventually;
use futures_util::future::poll_immediate;
use support::nodes::{key, soon};
use support::{Origin, of, plain, versions_with};
use tenant_cache::{Caches, TenantCache};

const ROW: &str = "acme:rows:k";

struct Stage {
    origin: Origin,
    store: Arc<MokaCacheService>,
    far: Arc<ChaosCache>,
    caches: Caches,
    cache: TenantCache<String, u64>,
}

impl Stage {
    /// With the numbers of the groups known, if `warm`.
    async fn new(origin: Origin, warm: bool) -> Self {
        // By a clock that stands still: no lease ends by itself.
        let store = MokaCacheService::builder().clock(ManualClock::new().clock()).build().unwrap();
        let store = Arc::new(store);
        let far = Arc::new(ChaosCache::new(store.clone()));
        let caches = Caches::builder().far(far.clone()).build().unwrap();
        let cache = versions_with(&caches, &origin, |domain| domain);
        if warm {
            of("acme", cache.contains(&"other".to_owned())).await.unwrap();
        }
        origin.commit("k", 1);
        far.take_calls();
        Self { origin, store, far, caches, cache }
    }

    /// Whether nobody holds a lease on a key.
    async fn is_free(&self, key: &str) -> bool {
        let token = LeaseToken::random();
        match self.store.get_or_lease(key, token, Duration::from_secs(1)).await.unwrap() {
            Lookup::Busy => false,
            Lookup::Granted(_) => {
                self.store.release(key, &Claim::lease(token)).await.unwrap();
                true
            }
            Lookup::Hit(_) => true,
        }
    }
}

/// Dropped while the lease is on its way, or granted and not yet told, or while the load runs, or the value is stored.
#[tokio::test]
async fn who_is_dropped_leaves_no_lease() {
    for (method, gate) in
        [(Method::GetOrLease, Gate::Hold), (Method::GetOrLease, Gate::HoldAnswer), (Method::Fill, Gate::Hold)]
    {
        let stage = Stage::new(Origin::open(), true).await;
        stage.far.set_gate(method, gate);
        let row = key();
        let mut lookup = Box::pin(of("acme", stage.cache.get(&row)));
        assert!(poll_immediate(&mut lookup).await.is_none());
        soon(stage.far.at_gate(method, 1)).await;
        drop(lookup);
        stage.far.set_gate(method, Gate::Open);
        eventually(&format!("the lease given up, {method:?} {gate:?}"), async || stage.is_free(ROW).await)
            .await;
    }
}

/// The store grants the lease and its answer is lost, or never comes.
#[tokio::test]
async fn a_lease_whose_answer_is_lost_is_given_up() {
    let stage = Stage::new(Origin::open(), true).await;
    stage.far.set_gate(Method::GetOrLease, Gate::LostAnswer(BackendErrorKind::Unavailable));
    assert_eq!(plain(of("acme", stage.cache.get(&key())).await.unwrap()), Some(1));
    eventually("the lease given up", async || stage.is_free(ROW).await).await;
}

/// The same with the number of a group, for which everybody would wait.
#[tokio::test]
async fn who_is_dropped_while_a_group_is_made_leaves_no_lease() {
    for gate in [Gate::HoldAnswer, Gate::LostAnswer(BackendErrorKind::Unavailable)] {
        let stage = Stage::new(Origin::open(), false).await;
        stage.far.set_gate(Method::GetOrLease, gate);
        let row = key();
        let mut lookup = Box::pin(of("acme", stage.cache.get(&row)));
        if poll_immediate(&mut lookup).await.is_none() && gate == Gate::HoldAnswer {
            soon(stage.far.at_gate(Method::GetOrLease, 1)).await;
        }
        drop(lookup);
        stage.far.set_gate(Method::GetOrLease, Gate::Open);
        for group in ["gen:all", "gen:d:rows", "gen:t:acme:rows"] {
            eventually(&format!("{group} is free, {gate:?}"), async || stage.is_free(group).await).await;
        }
    }
}

/// A refresh in the background whose lease is granted and lost.
#[tokio::test]
async fn a_refresh_leaves_no_lease() {
    let stage = Stage::new(Origin::gated(), true).await;
    let refresh = {
        let cache = stage.cache.clone();
        tokio::spawn(async move { of("acme", cache.refresh(&key())).await })
    };
    stage.origin.at_gate(1).await;
    assert!(!stage.is_free(ROW).await, "it loads under a lease");
    refresh.abort();
    eventually("the lease given up", async || stage.is_free(ROW).await).await;
}

/// The end of the caches ends their loads, which give up their leases and tell their callers.
#[tokio::test]
async fn shutting_down_gives_leases_up() {
    let stage = Stage::new(Origin::gated(), true).await;
    let cache = stage.cache.clone();
    let lookup = tokio::spawn(async move { of("acme", cache.get(&key())).await });
    stage.origin.at_gate(1).await;
    assert!(!stage.is_free(ROW).await);
    assert!(stage.caches.shut_down(Duration::from_secs(10)).await);
    assert!(stage.is_free(ROW).await);
    let ended = soon(lookup).await.unwrap();
    assert!(matches!(ended, Err(CacheError::Load(LoadError::ShutDown { .. }))), "{ended:?}");
    let after = of("acme", stage.cache.get(&key())).await;
    assert!(matches!(after, Err(CacheError::Load(LoadError::ShutDown { .. }))), "{after:?}");
}

/// An insert that is dropped half-way, or whose store's answer is lost, leaves neither a lease nor an old value.
#[tokio::test]
async fn an_insert_that_is_not_finished_removes_the_key() {
    for (method, gate) in [
        (Method::TakeLease, Gate::HoldAnswer),
        (Method::Fill, Gate::Hold),
        (Method::Fill, Gate::HoldAnswer),
        (Method::TakeLease, Gate::LostAnswer(BackendErrorKind::Unavailable)),
        (Method::Fill, Gate::LostAnswer(BackendErrorKind::Unavailable)),
        (Method::Fill, Gate::Error(BackendErrorKind::Unavailable)),
    ] {
        let stage = Stage::new(Origin::open(), true).await;
        of("acme", stage.cache.get(&key())).await.unwrap();
        stage.origin.commit("k", 3);
        stage.far.set_gate(method, gate);
        let row = key();
        let mut insert = Box::pin(of("acme", stage.cache.insert(&row, 2)));
        match poll_immediate(&mut insert).await {
            Some(ended) => assert!(ended.is_err(), "{method:?} {gate:?}"),
            None => soon(stage.far.at_gate(method, 1)).await,
        }
        drop(insert);
        stage.far.set_gate(method, Gate::Open);
        let what = format!("the newest row, {method:?} {gate:?}");
        eventually(&what, async || {
            let found = plain(of("acme", stage.cache.get(&key())).await.unwrap());
            assert_ne!(found, None, "{what}");
            found == Some(3)
        })
        .await;
    }
}

mod redis {
    use std::sync::Arc;
    use std::time::Duration;

    use cache_redis::RedisCacheService;
    use conformance::redis_server::RedisServer;
    use conformance::resp::Reply;
    use conformance::wait::until;
    use tenant_cache::Caches;

    use crate::support::{Origin, of, versions_with};

    const ROWS: u64 = 64;

    /// Ten thousand callers who hang up at any time, most of them while an answer of Redis is on its way. The leases are
    /// long: none ends by itself.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ten_thousand_cancelled_callers_leave_no_lease() {
        let server = RedisServer::start();
        let far = Arc::new(RedisCacheService::new(&server.url(), Duration::from_secs(300)).unwrap());
        let (caches, origin) = (Caches::builder().far(far).build().unwrap(), Origin::open());
        let cache = versions_with(&caches, &origin, |domain| {
            domain.lease_for(Duration::from_secs(600)).near_ttl(Duration::ZERO)
        });
        of("acme", cache.contains(&"other".to_owned())).await.unwrap();
        for caller in 0..10_000 {
            let (row, cache) = ((caller % ROWS).to_string(), cache.clone());
            let lookup = tokio::spawn(async move { of("acme", cache.get(&row)).await.map(drop) });
            // The callers run on the threads of the runtime, which is not this one: some time passes.
            for _ in 0..caller % 4 {
                server.command(&["PING"]);
            }
            lookup.abort();
            // Else all rows are soon there, and nobody asks for a lease.
            if caller % 8 == 0 {
                server.command(&["UNLINK", &format!("acme:rows:{}", (caller / 8) % ROWS)]);
            }
        }
        let leased = || {
            let held = (0..ROWS).map(|row| server.command(&["GET", &format!("acme:rows:{row}")]));
            held.filter(|held| matches!(held, Reply::Bulk(bytes) if bytes.first() == Some(&0))).count()
        };
        until("the leases given up", || leased() == 0).await;
        assert!(cache.stats().loads > 100, "{:?}", cache.stats());
    }
}
