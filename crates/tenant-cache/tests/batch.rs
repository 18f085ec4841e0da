//! Several keys at once.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_core::{BackendErrorKind, CacheError, Clock, ManualClock, RequestContext, Scope};
use conformance::faults::{ChaosCache, Gate, Method};
use conformance::model::ModelCache;
use support::{Origin, of, plain, tenant, user, versions};
use tenant_cache::{Caches, RequestScope, TenantCache};
use tokio::sync::Semaphore;

fn far(clock: Clock) -> Arc<ChaosCache> {
    Arc::new(ChaosCache::new(Arc::new(ModelCache::new(clock, 1 << 20))))
}

fn instance(hand: &ManualClock, far: &Arc<ChaosCache>) -> Caches {
    Caches::builder().far(far.clone()).clock(hand.clock()).build().unwrap()
}

fn keys(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn get_many(cache: &TenantCache<String, u64>, names: &[&str]) -> Vec<Option<u64>> {
    let found = of("acme", cache.get_many(&keys(names))).await.unwrap();
    found.into_iter().map(plain).collect()
}

/// An origin with a bulk loader, whose bulk loads can be held.
struct Bulk {
    batches: Arc<Mutex<Vec<Vec<String>>>>,
    singles: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    cache: TenantCache<String, u64>,
}

/// Values are the lengths of the keys; those with an `x` do not exist; one that is `bad` fails its whole batch.
fn bulk(caches: &Caches) -> Bulk {
    let batches: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
    let (singles, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (seen, counted, held) = (Arc::clone(&batches), Arc::clone(&singles), Arc::clone(&gate));
    let value = |key: &String| (!key.contains('x')).then_some(key.len() as u64);
    let cache = caches
        .domain("rows")
        .scope(Scope::Tenant)
        .bulk(move |keys: Vec<String>| {
            let mut sorted = keys.clone();
            sorted.sort();
            seen.lock().unwrap().push(sorted);
            let held = Arc::clone(&held);
            async move {
                held.acquire().await.unwrap().forget();
                if keys.iter().any(|key| key == "bad") {
                    return Err(io::Error::other("bad"));
                }
                let found = keys.into_iter().filter_map(|key| value(&key).map(|value| (key, value)));
                Ok(found.collect::<HashMap<_, _>>())
            }
        })
        .load(move |key: String| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move { Ok::<_, io::Error>(value(&key)) }
        })
        .unwrap();
    Bulk { batches, singles, gate, cache }
}

impl Bulk {
    fn batches(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut *self.batches.lock().unwrap())
    }
}

/// A6, E3, SC8: what memory does not know is asked of the far tier in one round trip, in the order asked, also when a
/// key is named twice; another instance then loads nothing.
#[tokio::test]
async fn get_many_is_one_far_round_trip() {
    let (hand, origin) = (ManualClock::new(), Origin::open());
    let far = far(hand.clock());
    let (here, there) = (instance(&hand, &far), instance(&hand, &far));
    let (here, there) = (versions(&here, &origin), versions(&there, &origin));
    let names: Vec<String> = (0..50).map(|n| format!("k{n}")).collect();
    (0..50).for_each(|n| origin.commit(&format!("k{n}"), n));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let expected: Vec<_> = (0..50).map(Some).collect();
    assert_eq!(get_many(&here, &names).await, expected);
    let reads = || far.calls(Method::GetManyBytes) + far.calls(Method::GetBytes);
    let before = reads();
    assert_eq!(get_many(&there, &names).await, expected);
    assert_eq!((reads() - before, origin.loads()), (1, 50), "one round trip, no load");
    assert_eq!(get_many(&there, &["k3", "gone", "k3", "k1"]).await, [Some(3), None, Some(3), Some(1)]);
    assert_eq!((reads() - before, origin.loads()), (2, 51), "and for the one that was missing");
    let stats = there.stats();
    assert_eq!((stats.far_hits, stats.near_hits, stats.misses), (50, 3, 1));
}

/// E3: what nobody knows is loaded in one bulk load, each key stored by itself.
#[tokio::test]
async fn what_nobody_knows_is_loaded_in_one_go() {
    let hand = ManualClock::new();
    let far = far(hand.clock());
    let there = instance(&hand, &far);
    for caches in [Caches::in_memory(), instance(&hand, &far)] {
        let b = bulk(&caches);
        b.gate.add_permits(10);
        assert_eq!(get_many(&b.cache, &["a", "bb", "x", "ccc"]).await, [Some(1), Some(2), None, Some(3)]);
        assert_eq!(b.batches(), [keys(&["a", "bb", "ccc", "x"])]);
        assert_eq!(get_many(&b.cache, &["a", "dd", "x", "eee"]).await, [Some(1), Some(2), None, Some(3)]);
        assert_eq!(b.batches(), [keys(&["dd", "eee"])]);
        assert_eq!(plain(of("acme", b.cache.get(&"fff".to_owned())).await.unwrap()), Some(3));
        assert_eq!((b.batches().len(), b.singles.load(Ordering::SeqCst)), (0, 1), "one key is loaded singly");
    }
    let b = bulk(&there);
    assert_eq!(get_many(&b.cache, &["ccc", "a", "x"]).await, [Some(3), Some(1), None]);
    assert!(b.batches().is_empty(), "another instance finds them in the far tier");
}

/// SA16, SA2: overlapping calls, together with single ones, load each key once.
#[tokio::test]
async fn overlapping_calls_load_each_key_once() {
    let hand = ManualClock::new();
    for caches in [Caches::in_memory(), instance(&hand, &far(hand.clock()))] {
        let b = bulk(&caches);
        let call = |names: &'static [&'static str]| {
            let cache = b.cache.clone();
            tokio::spawn(async move { get_many(&cache, names).await })
        };
        let first = call(&["a", "bb", "ccc"]);
        while b.batches.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        let second = call(&["bb", "ccc", "dddd"]);
        let single = {
            let cache = b.cache.clone();
            tokio::spawn(async move { of("acme", async { cache.get(&"a".to_owned()).await }).await })
        };
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        b.gate.add_permits(10);
        assert_eq!(first.await.unwrap(), [Some(1), Some(2), Some(3)]);
        assert_eq!(second.await.unwrap(), [Some(2), Some(3), Some(4)]);
        assert_eq!(plain(single.await.unwrap().unwrap()), Some(1));
        assert_eq!(b.batches(), [keys(&["a", "bb", "ccc"]), keys(&["dddd"])]);
        assert_eq!(b.singles.load(Ordering::SeqCst), 0);
    }
}

/// SA16: a key that fails does not fail the others; a batch that fails, fails the keys that were in it.
#[tokio::test]
async fn one_failing_key_does_not_fail_the_others() {
    let b = bulk(&Caches::in_memory());
    b.gate.add_permits(10);
    get_many(&b.cache, &["a", "bb"]).await;
    let outcomes = of("acme", b.cache.lookup_many(&keys(&["a", "bad", "bb", "ccc"]))).await.unwrap();
    let values: Vec<_> = outcomes.into_iter().map(|found| found.map(|found| plain(found.value))).collect();
    assert!(matches!(values[..], [Ok(Some(1)), Err(CacheError::Load(_)), Ok(Some(2)), Err(_)]), "{values:?}");
    let long = "k".repeat(600);
    let outcomes = of("acme", b.cache.lookup_many(&keys(&[&long, "ccc"]))).await.unwrap();
    assert!(matches!(outcomes[..], [Err(CacheError::InvalidKey(_)), Ok(_)]), "{outcomes:?}");
    assert!(of("acme", b.cache.get_many(&keys(&["bad", "eeeee"]))).await.is_err());
    assert_eq!(get_many(&b.cache, &["ccc"]).await, [Some(3)], "what was found is kept");
}

/// SA5: the caller of a bulk load leaves: whoever waits for one of its keys still gets it; with nobody left it ends.
#[tokio::test]
async fn a_bulk_load_outlives_its_caller_for_those_who_wait() {
    let b = bulk(&Caches::in_memory());
    let caller = {
        let cache = b.cache.clone();
        tokio::spawn(async move { get_many(&cache, &["a", "bb"]).await })
    };
    while b.batches.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let waiter = {
        let cache = b.cache.clone();
        tokio::spawn(async move { of("acme", async { cache.get(&"a".to_owned()).await }).await })
    };
    tokio::task::yield_now().await;
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    b.gate.add_permits(1);
    assert_eq!(plain(waiter.await.unwrap().unwrap()), Some(1));
    assert_eq!((b.batches().len(), b.singles.load(Ordering::SeqCst)), (1, 0));
    b.gate.add_permits(1);
    assert_eq!(get_many(&b.cache, &["bb", "a"]).await, [Some(2), Some(1)]);
}

/// SA13, E4: a key that another instance is loading does not keep the others waiting.
#[tokio::test]
async fn a_key_that_another_instance_loads_does_not_hold_up_the_rest() {
    let hand = ManualClock::new();
    let far = far(hand.clock());
    let (here, there) = (bulk(&instance(&hand, &far)), bulk(&instance(&hand, &far)));
    let elsewhere = {
        let cache = there.cache.clone();
        tokio::spawn(async move { get_many(&cache, &["a", "bb"]).await })
    };
    while there.batches.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let call = {
        let cache = here.cache.clone();
        tokio::spawn(async move { get_many(&cache, &["a", "ccc"]).await })
    };
    here.gate.add_permits(10);
    let mut begun = Vec::new();
    while begun.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        begun = here.batches();
    }
    assert_eq!(begun, [keys(&["ccc"])], "`a` is left to the other instance");
    there.gate.add_permits(10);
    assert_eq!(call.await.unwrap(), [Some(1), Some(3)]);
    assert_eq!(elsewhere.await.unwrap(), [Some(1), Some(2)]);
}

/// SA10: a bulk loader that asks for one of its own keys is told so, and does not wait for itself.
#[tokio::test]
async fn a_bulk_loader_that_asks_for_its_own_keys_is_told() {
    let caches = Caches::in_memory();
    let own: Arc<std::sync::OnceLock<TenantCache<String, u64>>> = Arc::default();
    let asks = Arc::clone(&own);
    let cache = caches
        .domain("rows")
        .scope(Scope::Tenant)
        .bulk(move |keys: Vec<String>| {
            let cache = asks.get().unwrap().clone();
            async move {
                let mut found = HashMap::new();
                for key in keys {
                    let value = cache.get(&key).await?;
                    found.extend(value.map(|value| (key, *value)));
                }
                Ok::<_, CacheError>(found)
            }
        })
        .load(|_: String| async { Ok::<_, io::Error>(None) })
        .unwrap();
    own.set(cache.clone()).unwrap();
    let error = of("acme", cache.get_many(&keys(&["a", "b"]))).await.unwrap_err();
    let mut source: Option<&dyn std::error::Error> = Some(&error);
    let mut told = false;
    while let Some(error) = source {
        told |= error.to_string().contains("asked for the key it is loading");
        source = error.source();
    }
    assert!(told, "{error:?}");
}

/// SC2, SC3: a far tier that fails in the middle leaves the caller unaffected.
#[tokio::test]
async fn a_far_tier_that_fails_in_the_middle_is_left_out() {
    let hand = ManualClock::new();
    for method in Method::ALL {
        let far = far(hand.clock());
        let b = bulk(&instance(&hand, &far));
        b.gate.add_permits(100);
        far.set_gate(method, Gate::Error(BackendErrorKind::Unavailable));
        assert_eq!(get_many(&b.cache, &["a", "x", "bb"]).await, [Some(1), None, Some(2)], "{method:?}");
        assert_eq!(plain(of("acme", b.cache.get(&"ccc".to_owned())).await.unwrap()), Some(3), "{method:?}");
    }
}

/// A bulk load runs in the scope of its entries, also when it is begun by a caller whose other key was loaded by somebody
/// else meanwhile.
#[tokio::test(start_paused = true)]
async fn a_bulk_load_sees_nothing_of_the_request_that_begins_it() {
    let (gate, users) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (held, seen) = (Arc::clone(&gate), Arc::clone(&users));
    let cache: TenantCache<String, u64> = Caches::in_memory()
        .domain("rows")
        .scope(Scope::Tenant)
        .bulk(move |keys: Vec<String>| {
            let seen = Arc::clone(&seen);
            async move {
                let context = RequestContext::current().expect("the tenant's");
                seen.lock().unwrap().push((keys.clone(), context.user.clone()));
                Ok::<_, io::Error>(keys.into_iter().map(|key| (key, 1)).collect())
            }
        })
        .load(move |_: String| {
            let held = Arc::clone(&held);
            async move {
                held.acquire().await.unwrap().forget();
                Ok::<_, io::Error>(Some(1))
            }
        })
        .unwrap();
    let single = cache.clone();
    let loading = tokio::spawn(async move { of("acme", single.get(&"a".to_owned())).await });
    tokio::task::yield_now().await;
    let ann = RequestContext::new(tenant("acme")).with_user(user("ann"));
    let both = tokio::spawn(ann.scope(async move { cache.get_many(&keys(&["a", "b"])).await }));
    // Until `b` waits for `a`; the time in which it does stands still while somebody runs.
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1);
    let found = both.await.unwrap().unwrap();
    assert_eq!(found.into_iter().map(plain).collect::<Vec<_>>(), [Some(1), Some(1)]);
    assert_eq!(plain(loading.await.unwrap().unwrap()), Some(1));
    assert_eq!(*users.lock().unwrap(), [(keys(&["b"]), None)]);
}
