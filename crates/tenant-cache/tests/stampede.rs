//! Many callers, one load.

mod support;

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, LoadError, Scope};
use futures_util::FutureExt;
use futures_util::future::join_all;
use support::{Origin, of, plain, versions};
use tenant_cache::{Caches, TenantCache};

/// SA1, E4: a thousand callers of a cold key run one load and all get its value.
#[tokio::test]
async fn a_thousand_callers_run_one_load() {
    let (caches, origin) = (Caches::in_memory(), Origin::gated());
    let cache = versions(&caches, &origin);
    origin.commit("k", 7);
    let callers = (0..1_000).map(|_| {
        let cache = cache.clone();
        tokio::spawn(async move { of("acme", async { cache.get(&"k".to_owned()).await }).await })
    });
    let callers: Vec<_> = callers.collect();
    origin.at_gate(1).await;
    origin.release(1);
    for answer in join_all(callers).await {
        assert_eq!(plain(answer.unwrap().unwrap()), Some(7));
    }
    assert_eq!(origin.loads(), 1);
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.near_hits + stats.misses), (1, 1_000));
}

/// SA3, SA5: whoever leaves, the load goes on for those who stay.
#[tokio::test]
async fn a_lost_leader_hands_over() {
    let (caches, origin) = (Caches::in_memory(), Origin::gated());
    let cache = versions(&caches, &origin);
    origin.commit("k", 7);
    let get = |cache: TenantCache<String, u64>| {
        tokio::spawn(async move { of("acme", async { cache.get(&"k".to_owned()).await }).await })
    };
    let leader = get(cache.clone());
    origin.at_gate(1).await;
    let waiter = get(cache.clone());
    let other = get(cache.clone());
    tokio::task::yield_now().await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    other.abort();
    assert!(other.await.unwrap_err().is_cancelled());
    origin.release(1);
    assert_eq!(plain(waiter.await.unwrap().unwrap()), Some(7));
    assert_eq!(origin.loads(), 1);
}

/// SA5: when every caller has left, the load is cancelled, and the next caller begins a new one.
#[tokio::test]
async fn the_last_caller_to_leave_cancels_the_load() {
    let (caches, origin) = (Caches::in_memory(), Origin::gated());
    let cache = versions(&caches, &origin);
    origin.commit("k", 7);
    of("acme", async {
        let key = "k".to_owned();
        let mut first = cache.get(&key).boxed();
        let mut second = cache.get(&key).boxed();
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        origin.at_gate(1).await;
        drop((first, second));
        // The load stood at the gate; cancelled, it stands there no more.
        let third = async { plain(cache.get(&key).await.unwrap()) };
        let release = async {
            origin.at_gate(1).await;
            origin.release(1);
        };
        assert_eq!(tokio::join!(third, release).0, Some(7));
    })
    .await;
    assert_eq!(origin.loads(), 2);
}

/// SA4: a panicking loader is an error to its callers and poisons nothing.
#[tokio::test]
async fn a_panicking_loader_is_an_error() {
    let cache: TenantCache<u32, u32> = Caches::in_memory()
        .domain("panics")
        .scope(Scope::Global)
        .load(|key: u32| {
            assert!(key != 1, "before the future is made");
            async move {
                assert!(key != 2, "while it runs");
                Ok::<_, std::io::Error>(Some(key))
            }
        })
        .unwrap();
    for key in [1, 2] {
        let answers = join_all((0..3).map(|_| cache.get(&key))).await;
        for answer in answers {
            assert!(matches!(answer, Err(CacheError::Load(LoadError::Panicked { .. }))), "{answer:?}");
        }
    }
    assert_eq!(cache.get(&3).await.unwrap().as_deref(), Some(&3));
    assert_eq!(cache.stats().load_failures, 2, "the callers of a key share its panic");
}

/// SA6, E4: an error reaches all who wait, and nobody after them.
#[tokio::test]
async fn an_error_reaches_the_waiters_and_is_not_kept() {
    let (caches, origin) = (Caches::in_memory(), Origin::gated());
    let cache = versions(&caches, &origin);
    origin.commit("k", 7);
    origin.set_broken(true);
    of("acme", async {
        let key = "k".to_owned();
        let callers = join_all((0..10).map(|_| cache.get(&key)));
        let release = async {
            origin.at_gate(1).await;
            origin.release(1);
        };
        let (answers, ()) = tokio::join!(callers, release);
        for answer in answers {
            let error = answer.unwrap_err();
            assert!(matches!(&error, CacheError::Load(LoadError::Failed { .. })), "{error:?}");
            assert!(error.to_string().contains("the origin is away"), "{error}");
        }
        assert_eq!(origin.loads(), 1);
        origin.set_broken(false);
        origin.release(1);
        assert_eq!(plain(cache.get(&key).await.unwrap()), Some(7));
    })
    .await;
}

/// SA10: a loader that asks for its own key is told so, directly and round a corner.
#[tokio::test]
async fn a_loader_that_asks_for_its_own_key_is_an_error() {
    let caches = Caches::in_memory();
    let again = caches.clone();
    let cache: TenantCache<u32, u32> = caches
        .domain("loops")
        .scope(Scope::Global)
        .load(move |key: u32| {
            let again = again.clone();
            async move {
                let cache: TenantCache<u32, u32> = again.get("loops").expect("defined");
                // 1 asks for 2, which asks for 1.
                let other = cache.get(&(3 - key)).await?;
                Ok::<_, CacheError>(other.map(|other| *other))
            }
        })
        .unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(5), cache.get(&1)).await.expect("no dead lock");
    let error = answer.unwrap_err();
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut texts = Vec::new();
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    assert!(texts.iter().any(|text| text.contains("asked for the key it is loading")), "{texts:?}");
}

/// SA15: a hundred keys with a hundred callers each run one load per key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_many_keys_is_loaded_once() {
    let (caches, origin) = (Caches::in_memory(), Origin::open());
    let cache = versions(&caches, &origin);
    (0..100).for_each(|key| origin.commit(&key.to_string(), key));
    let callers: Vec<_> = (0..10_000_u64)
        .map(|caller| {
            let cache = cache.clone();
            tokio::spawn(async move {
                let key = caller % 100;
                let found = of("acme", async { cache.get(&key.to_string()).await }).await.unwrap();
                assert_eq!(plain(found), Some(key));
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(origin.loads(), 100);
}

/// SA16: overlapping batches load each key once; the answers come in the order asked.
#[tokio::test]
async fn overlapping_batches_load_each_key_once() {
    let (caches, origin) = (Caches::in_memory(), Origin::open());
    let cache = versions(&caches, &origin);
    (0..20).for_each(|key| origin.commit(&key.to_string(), key));
    let batch = |from: u64| (from..from + 10).map(|key| key.to_string()).collect::<Vec<_>>();
    let (first, second) = (batch(0), batch(5));
    let (first, second) =
        of("acme", async { tokio::join!(cache.get_many(&first), cache.get_many(&second)) }).await;
    let versions = |found: Vec<Option<Arc<u64>>>| found.into_iter().map(plain).collect::<Vec<_>>();
    assert_eq!(versions(first.unwrap()), (0..10).map(Some).collect::<Vec<_>>());
    assert_eq!(versions(second.unwrap()), (5..15).map(Some).collect::<Vec<_>>());
    assert_eq!(origin.loads(), 15);
}
