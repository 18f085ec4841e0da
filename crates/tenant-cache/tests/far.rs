//! The far tier behind the near one: what is asked of it, what happens when it fails, what it may hold.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cache_core::{
    CacheError, CacheService, CacheServiceExt, Codec, CodecError, LeaseToken, Lookup, ManualClock, Ttl,
};
use cache_moka::MokaCacheService;
use support::watched::Watched;
use support::{Origin, of, plain, versions, versions_with};
use tenant_cache::{Caches, NegativeTier, Source, TenantCache};

struct Set {
    hand: ManualClock,
    far: Arc<Watched>,
    origin: Origin,
    caches: Caches,
    cache: TenantCache<String, u64>,
}

fn set() -> Set {
    set_with(|domain| domain)
}

fn set_with(
    options: impl FnOnce(tenant_cache::DomainBuilder<String, u64>) -> tenant_cache::DomainBuilder<String, u64>,
) -> Set {
    let hand = ManualClock::new();
    let far = Watched::on(hand.clock());
    let origin = Origin::open();
    let caches = instance(&hand, &far);
    let cache = versions_with(&caches, &origin, options);
    Set { hand, far, origin, caches, cache }
}

/// A further instance on the same far tier.
fn instance(hand: &ManualClock, far: &Arc<Watched>) -> Caches {
    Caches::builder().far(far.clone()).clock(hand.clock()).build().unwrap()
}

fn key() -> String {
    "k".to_owned()
}

async fn lookup(cache: &TenantCache<String, u64>) -> (Option<u64>, Source) {
    let found = of("acme", cache.lookup(&key())).await.unwrap();
    (plain(found.value), found.source)
}

/// SC8, E2: near hit: nothing is asked of the far tier; far hit: one read; miss: one read, the lease, one write.
#[tokio::test]
async fn each_kind_of_lookup_asks_for_what_it_needs() {
    let s = set();
    s.origin.commit("k", 1);
    lookup(&s.cache).await;
    s.origin.commit("k", 2);
    of("acme", s.cache.invalidate(&key())).await.unwrap();
    s.far.taken();
    assert_eq!(lookup(&s.cache).await, (Some(2), Source::Origin));
    assert_eq!(s.far.taken(), (2, 1), "a miss: get, lease, fill");
    assert_eq!(lookup(&s.cache).await, (Some(2), Source::Near));
    assert_eq!(s.far.taken(), (0, 0), "a near hit");
    s.hand.advance(Duration::from_secs(10));
    assert_eq!(lookup(&s.cache).await, (Some(2), Source::Far));
    assert_eq!(s.far.taken(), (1, 0), "a far hit");
    assert_eq!(lookup(&s.cache).await, (Some(2), Source::Near), "promoted");
    let other = versions(&instance(&s.hand, &s.far), &s.origin);
    assert_eq!(lookup(&other).await, (Some(2), Source::Far), "another instance finds it there");
    let stats = s.cache.stats();
    assert_eq!((stats.near_hits, stats.far_hits, stats.misses, stats.loads), (2, 1, 2, 2));
}

/// E5, SB15: the far entry lives for the TTL, the near one never beyond it.
#[tokio::test]
async fn the_near_entry_never_outlives_the_far_one() {
    let s = set_with(|domain| domain.ttl(Duration::from_secs(60)).near_ttl(Duration::from_secs(50)));
    s.origin.commit("k", 1);
    lookup(&s.cache).await;
    s.hand.advance(Duration::from_secs(55));
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Far));
    s.origin.commit("k", 2);
    s.hand.advance(Duration::from_secs(4));
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Near));
    s.hand.advance(Duration::from_secs(1));
    assert_eq!(lookup(&s.cache).await, (Some(2), Source::Origin), "both ended after 60 s");
}

/// E6, SB12: "not found" is remembered for its own short time, and an insert replaces it at once.
#[tokio::test]
async fn not_found_is_remembered_for_a_while() {
    let s = set();
    assert_eq!(lookup(&s.cache).await, (None, Source::Origin));
    assert_eq!(lookup(&s.cache).await, (None, Source::Near));
    let other = versions(&instance(&s.hand, &s.far), &s.origin);
    assert_eq!(lookup(&other).await, (None, Source::Far), "it saves the other instance the question");
    assert!(!of("acme", s.cache.contains(&key())).await.unwrap());
    s.origin.commit("k", 1);
    of("acme", s.cache.insert(&key(), 1)).await.unwrap();
    assert_eq!(lookup(&s.cache).await.0, Some(1));
    s.origin.delete("k");
    of("acme", s.cache.invalidate(&key())).await.unwrap();
    assert_eq!(lookup(&s.cache).await.0, None);
    s.origin.commit("k", 2);
    s.hand.advance(Duration::from_secs(30));
    assert_eq!(lookup(&s.cache).await, (Some(2), Source::Origin));
}

/// E6, K3: where so configured "not found" never reaches the far tier, and evicts no values.
#[tokio::test]
async fn not_found_can_be_kept_out_of_the_far_tier() {
    let s = set_with(|domain| domain.negative_tier(NegativeTier::Near).capacity(10).negative_capacity(10));
    s.origin.commit("k", 1);
    lookup(&s.cache).await;
    for n in 0..100 {
        assert!(of("acme", s.cache.get(&format!("invented{n}"))).await.unwrap().is_none());
    }
    assert_eq!(s.far.get_bytes("acme:rows:invented7").await.unwrap(), None);
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Near));
    assert!(s.cache.stats().negative_size <= 10, "{:?}", s.cache.stats());
    let again = of("acme", s.cache.lookup(&"invented99".to_owned())).await.unwrap();
    assert_eq!(again.source, Source::Near);
}

/// SC1, SC2, SC3: a far tier that fails costs a load, never an error; what it holds counts again afterwards.
#[tokio::test]
async fn a_failing_far_tier_costs_a_load() {
    let s = set();
    s.origin.commit("k", 1);
    lookup(&s.cache).await;
    s.far.set_broken(true);
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Near), "memory still answers");
    s.hand.advance(Duration::from_secs(10));
    for _ in 0..3 {
        assert_eq!(lookup(&s.cache).await, (Some(1), Source::Origin));
    }
    let error = of("acme", s.cache.invalidate(&key())).await.unwrap_err();
    assert!(matches!(error, CacheError::Backend(_)), "P6: the caller is told: {error:?}");
    s.far.set_broken(false);
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Far));
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Near));
    s.far.set_broken(true);
    assert!(of("acme", s.cache.invalidate(&key())).await.is_err());
    let kept = of("acme", async { s.cache.peek(&key()) }).await.unwrap();
    assert_eq!(plain(kept), None, "this instance forgets it all the same");
    let stats = s.cache.stats();
    assert_eq!((stats.far_failures, stats.uncached_loads), (3, 3));
}

/// SC6, A9, F12: whatever lies under the key is a counted miss and is replaced: rubbish, cut, of another key, of
/// another type, of a newer format.
#[tokio::test]
async fn damaged_entries_are_replaced() {
    let s = set();
    s.origin.commit("k", 1);
    lookup(&s.cache).await;
    let whole = s.far.get_bytes("acme:rows:k").await.unwrap().unwrap();
    let cut = whole.slice(..whole.len() - 1);
    of("globex", s.cache.get(&key())).await.unwrap();
    let foreign = s.far.get_bytes("globex:rows:k").await.unwrap().unwrap();
    let other_type = Bytes::from([&whole[..whole.len() - 1], b"\"text\""].concat());
    let newer = Bytes::from([&[9], &whole[1..]].concat());
    let rubbish = Bytes::from_static(b"\x01rubbish");
    for (n, damaged) in
        [cut, foreign, other_type, newer, rubbish, Bytes::new(), "{}".into()].into_iter().enumerate()
    {
        s.far.set_bytes("acme:rows:k", damaged, Ttl::Default).await.unwrap();
        let fresh = of("acme", s.cache.fresh(&key())).await.unwrap();
        assert_eq!(plain(fresh), Some(1), "{n}");
        assert!(s.cache.stats().damaged > n as u64, "{n} is counted: {:?}", s.cache.stats());
        let other = versions(&instance(&s.hand, &s.far), &s.origin);
        assert_eq!(lookup(&other).await, (Some(1), Source::Far), "{n} was replaced");
    }
}

/// D4, P5: a value that was moved under another tenant's key is not that tenant's.
#[tokio::test]
async fn a_moved_value_is_not_read() {
    let s = set();
    s.origin.commit("k", 1);
    lookup(&s.cache).await;
    let acmes = s.far.get_bytes("acme:rows:k").await.unwrap().unwrap();
    s.far.set_bytes("globex:rows:k", acmes, Ttl::Default).await.unwrap();
    s.origin.commit("k", 2);
    assert_eq!(plain(of("globex", s.cache.get(&key())).await.unwrap()), Some(2));
}

/// SC7: a value that cannot be written is returned all the same, and stored nowhere.
#[tokio::test]
async fn a_value_that_cannot_be_written_is_returned() {
    #[derive(Debug)]
    struct Unwritable;
    impl Codec<u64> for Unwritable {
        fn encode(&self, _: &u64) -> Result<Bytes, CodecError> {
            Err(CodecError::new::<u64>("encode", "made to fail"))
        }
        fn decode(&self, _: &[u8]) -> Result<u64, CodecError> {
            Err(CodecError::new::<u64>("decode", "made to fail"))
        }
    }
    let s = set_with(|domain| domain.codec(Unwritable));
    s.origin.commit("k", 1);
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Origin));
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Origin), "the lease was given up");
    assert_eq!(s.far.get_bytes("acme:rows:k").await.unwrap(), None);
    let error = of("acme", s.cache.insert(&key(), 2)).await.unwrap_err();
    assert!(matches!(error, CacheError::Serialization(_)), "{error:?}");
}

/// SC9: a far tier that was emptied is filled again.
#[tokio::test]
async fn an_emptied_far_tier_is_filled_again() {
    let s = set();
    s.origin.commit("k", 1);
    lookup(&s.cache).await;
    for prefix in ["acme:", "gen:"] {
        s.far.invalidate_prefix(prefix).await.unwrap();
    }
    s.hand.advance(Duration::from_secs(10));
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Origin));
    s.hand.advance(Duration::from_secs(10));
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Far));
}

/// SF7, E9: a lost generation number brings nothing back to life.
#[tokio::test]
async fn a_lost_generation_resurrects_nothing() {
    let s = set();
    s.origin.commit("k", 1);
    lookup(&s.cache).await;
    let old = s.far.get_bytes("acme:rows:k").await.unwrap().unwrap();
    s.origin.commit("k", 2);
    of("acme", s.cache.invalidate_all()).await.unwrap();
    s.far.invalidate_prefix("gen:").await.unwrap();
    s.far.set_bytes("acme:rows:k", old, Ttl::Default).await.unwrap();
    let other = versions(&instance(&s.hand, &s.far), &s.origin);
    assert_eq!(lookup(&other).await.0, Some(2));
    assert_eq!(lookup(&s.cache).await.0, Some(2));
}

/// E3, P1: `invalidate_all` is one write however many entries there are, and another instance that knows the old
/// number notices.
#[tokio::test]
async fn emptying_a_domain_is_one_write() {
    let s = set();
    (0..200).for_each(|n| s.origin.commit(&n.to_string(), n));
    for n in 0..200_u64 {
        of("acme", s.cache.get(&n.to_string())).await.unwrap();
    }
    s.far.taken();
    of("acme", s.cache.invalidate_all()).await.unwrap();
    assert_eq!(s.far.taken(), (0, 1));
    s.origin.commit("7", 1_007);
    assert_eq!(plain(of("acme", s.cache.get(&"7".to_owned())).await.unwrap()), Some(1_007));
}

/// SA12, P4: many instances with many callers each on a cold key run one load.
#[tokio::test]
async fn a_fleet_loads_a_key_once() {
    let hand = ManualClock::new();
    let (far, origin) = (Watched::on(hand.clock()), Origin::gated());
    origin.commit("k", 1);
    let fleet: Vec<_> = (0..10).map(|_| instance(&hand, &far)).collect();
    let caches: Vec<_> = fleet.iter().map(|caches| versions(caches, &origin)).collect();
    let callers = caches.iter().flat_map(|cache| (0..50).map(move |_| lookup(cache)));
    let callers = futures_util::future::join_all(callers);
    let landing = async {
        origin.at_gate(1).await;
        origin.release(1);
    };
    let (answers, ()) = tokio::join!(callers, landing);
    assert!(answers.iter().all(|(value, _)| *value == Some(1)));
    assert_eq!(origin.loads(), 1);
}

/// SA11, SA13: when another instance's load does not end, a caller loads by itself after `lease_wait`, and does
/// not store; the late fill of the holder is then as good as any.
#[tokio::test(start_paused = true)]
async fn a_load_that_does_not_end_blocks_nobody() {
    let s = set_with(|domain| domain.lease_wait(Duration::from_millis(200)));
    s.origin.commit("k", 1);
    lookup(&s.cache).await;
    of("acme", s.cache.invalidate(&key())).await.unwrap();
    // Another instance holds the lease, and is gone.
    let held = s.far.get_or_lease("acme:rows:k", LeaseToken::random(), Duration::from_secs(3)).await.unwrap();
    assert!(matches!(held, Lookup::Granted(_)));
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Origin));
    assert_eq!(s.cache.stats().uncached_loads, 1);
    s.hand.advance(Duration::from_secs(3));
    assert_eq!(lookup(&s.cache).await, (Some(1), Source::Origin));
    assert_eq!(
        lookup(&s.cache).await,
        (Some(1), Source::Near),
        "the lease ended, and the next load is stored"
    );
}

/// COHERENCE 1.4: a load that takes longer than its lease keeps it.
#[tokio::test(start_paused = true)]
async fn a_long_load_keeps_its_lease() {
    let far: Arc<MokaCacheService> = Arc::new(MokaCacheService::default());
    let caches = Caches::builder().far(far.clone()).build().unwrap();
    let cache: TenantCache<u32, u32> = caches
        .domain("slow")
        .scope(cache_core::Scope::Global)
        .lease_for(Duration::from_millis(300))
        .load(|key: u32| async move {
            // In the far tier's time, which is real, this is no time at all: what counts are the renewals.
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok::<_, std::io::Error>(Some(key))
        })
        .unwrap();
    assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&1));
    assert_eq!(cache.stats().refused_fills, 0);
    assert!(far.get::<serde_json::Value>("slow:1").await.is_err(), "a frame is stored");
}

/// E5: a life by key and outcome; zero is not cached.
#[tokio::test]
async fn a_life_may_depend_on_key_and_outcome() {
    let s = set_with(|domain| {
        domain.ttl_by(|key: &String, value: Option<&u64>| match (key.as_str(), value) {
            ("never", _) => Duration::ZERO,
            (_, Some(_)) => Duration::from_secs(5),
            (_, None) => Duration::from_secs(1),
        })
    });
    s.origin.commit("never", 1);
    s.origin.commit("k", 1);
    for _ in 0..2 {
        let never = of("acme", s.cache.lookup(&"never".to_owned())).await.unwrap();
        assert_eq!(never.source, Source::Origin);
    }
    lookup(&s.cache).await;
    s.hand.advance(Duration::from_secs(5));
    assert_eq!(lookup(&s.cache).await.1, Source::Origin);
    assert!(s.caches.get::<String, u64>("rows").is_some());
}

/// E8: retry, then time-out, then fallback; what the fallback says is not cached.
#[tokio::test(start_paused = true)]
async fn a_loader_is_retried_limited_and_stood_in_for() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let caches = Caches::in_memory();
    let cache: TenantCache<u32, u32> = caches
        .domain("flaky")
        .scope(cache_core::Scope::Global)
        .retry(tenant_cache::Retry::times(2))
        .attempt_timeout(Duration::from_millis(100))
        .timeout(Duration::from_secs(10))
        .fallback(|key, _| (*key != 9).then_some(0))
        .load(move |key: u32| {
            let tries = counted.clone();
            async move {
                let try_now = tries.fetch_add(1, Ordering::SeqCst) + 1;
                match key {
                    1 if try_now < 3 => Err(std::io::Error::other("not yet")),
                    2 => std::future::pending().await,
                    3 | 9 => Err(std::io::Error::other("never")),
                    key => Ok(Some(key)),
                }
            }
        })
        .unwrap();
    assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&1), "the third try succeeds");
    assert_eq!(tries.swap(0, Ordering::SeqCst), 3);
    let slow = cache.lookup(&2).await.unwrap();
    assert_eq!((slow.value.as_deref(), slow.source), (Some(&0), Source::Fallback));
    assert_eq!(tries.swap(0, Ordering::SeqCst), 3, "each try had its own limit");
    assert_eq!(cache.lookup(&3).await.unwrap().source, Source::Fallback);
    assert_eq!(cache.lookup(&3).await.unwrap().source, Source::Fallback, "not cached");
    let error = cache.get(&9).await.unwrap_err();
    assert!(error.to_string().contains("never"), "{error}");
}

/// SE8: a far value that is on its way when it is invalidated does not get into memory, whoever invalidates, and
/// by whichever kind of message; its own reader came before.
#[tokio::test]
async fn a_promotion_overtaken_by_an_invalidation_is_not_kept() {
    for how in ["key", "many", "insert", "all", "clear", "prefix", "flush"] {
        let s = set();
        s.origin.commit("k", 1);
        lookup(&s.cache).await;
        s.hand.advance(Duration::from_secs(10));
        s.far.hold_answers();
        let cache = s.cache.clone();
        let reader = tokio::spawn(async move { lookup(&cache).await });
        s.far.answer_is_held().await;
        s.origin.commit("k", 2);
        of("acme", async {
            match how {
                "key" => s.cache.invalidate(&key()).await.unwrap(),
                "many" => s.cache.invalidate_many(&[key(), "other".to_owned()]).await.unwrap(),
                "insert" => {
                    // The insert reads the numbers of the groups from memory, so nothing of it is held.
                    s.far.let_answer();
                    s.cache.insert(&key(), 2).await.unwrap();
                }
                "all" => s.cache.invalidate_all().await.unwrap(),
                "clear" => s.cache.clear().await.unwrap(),
                "prefix" => drop(s.caches.invalidate_prefix("acme:rows").await.unwrap()),
                _ => {
                    s.cache.invalidate(&key()).await.unwrap();
                    s.caches.invalidate_everything().await.unwrap();
                }
            }
        })
        .await;
        s.far.let_answer();
        let (value, _) = reader.await.unwrap();
        assert!(value.is_some(), "{how}");
        assert_eq!(plain(of("acme", async { s.cache.peek(&key()) }).await.unwrap()).unwrap_or(2), 2, "{how}");
        assert_eq!(lookup(&s.cache).await.0, Some(2), "{how}");
    }
}

/// SA2: callers who come by different entry points share one load.
#[tokio::test]
async fn different_entry_points_share_one_load() {
    let hand = ManualClock::new();
    let (far, origin) = (Watched::on(hand.clock()), Origin::gated());
    origin.commit("k", 1);
    let caches = instance(&hand, &far);
    let cache = versions(&caches, &origin);
    let key = key();
    let keys = [key.clone(), key.clone()];
    let callers = of("acme", async {
        let landing = async {
            origin.at_gate(1).await;
            origin.release(1);
        };
        let own = || async { Err::<Option<u64>, _>(std::io::Error::other("joined, so never called")) };
        tokio::join!(
            cache.get(&key),
            cache.lookup(&key),
            cache.get_many(&keys),
            cache.lookup_with(&key, own),
            landing
        )
    });
    let (get, lookup, many, with, ()) = callers.await;
    assert_eq!((plain(get.unwrap()), plain(lookup.unwrap().value)), (Some(1), Some(1)));
    assert!(many.unwrap().into_iter().all(|value| plain(value) == Some(1)));
    assert_eq!(plain(with.unwrap().value), Some(1));
    assert_eq!(origin.loads(), 1);
}

/// P6, SD2: a group invalidation that could not be written is an error to its caller, counts here at once, and is
/// repeated until it is written.
#[tokio::test(start_paused = true)]
async fn a_failed_group_invalidation_is_repeated() {
    let s = set();
    s.origin.commit("k", 1);
    lookup(&s.cache).await;
    let old = s.far.get_bytes("acme:rows:k").await.unwrap().unwrap();
    s.origin.commit("k", 2);
    s.far.set_broken(true);
    let failed = of("acme", s.cache.invalidate_all()).await.unwrap_err();
    assert!(failed.is_transient(), "{failed:?}");
    assert_eq!(s.caches.pending(), 1);
    assert_eq!(lookup(&s.cache).await, (Some(2), Source::Origin));
    s.far.set_broken(false);
    while s.caches.pending() > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The old entry is still there, and of an old generation.
    assert_eq!(s.far.get_bytes("acme:rows:k").await.unwrap(), Some(old));
    let other = versions(&instance(&s.hand, &s.far), &s.origin);
    assert_eq!(lookup(&other).await, (Some(2), Source::Origin));
}
