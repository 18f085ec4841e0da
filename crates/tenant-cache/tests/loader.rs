//! What a loader can see and decide: the stale value, "not modified", the life and the tags of its answer.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cache_core::{CacheError, LoadError, ManualClock, Scope};
use cache_moka::MokaCacheService;
use support::{of, plain, tenant};
use tenant_cache::{Caches, LoadRequest, Loaded, Source, TenantCache};
use tokio::sync::{Notify, Semaphore};

/// A cache whose loader is the given function, on memory alone or in front of a far tier.
fn caches(hand: &ManualClock, far: bool) -> Caches {
    let builder = Caches::builder().clock(hand.clock());
    let service = || Arc::new(MokaCacheService::builder().clock(hand.clock()).build().unwrap());
    if far { builder.far(service()) } else { builder }.build().unwrap()
}

fn with_loader<F>(caches: &Caches, load: F) -> TenantCache<String, u64>
where
    F: Fn(LoadRequest<String, u64>) -> Result<Loaded<u64>, io::Error> + Send + Sync + 'static,
{
    let domain = caches.domain("rows").scope(Scope::Tenant).jitter(0.0);
    domain
        .ttl(Duration::from_secs(60))
        .stale_if_error(Duration::from_secs(600))
        .load_with(move |request| std::future::ready(load(request)))
        .unwrap()
}

async fn get(cache: &TenantCache<String, u64>) -> (Option<u64>, Source) {
    let found = of("acme", cache.lookup(&"k".to_owned())).await.unwrap();
    (plain(found.value), found.source)
}

/// SB10, E14: the loader sees the stale value; "not modified" keeps it and begins its life anew, in every tier.
#[tokio::test]
async fn not_modified_keeps_the_value_and_renews_its_life() {
    for far in [false, true] {
        let hand = ManualClock::new();
        let caches = caches(&hand, far);
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let cache = with_loader(&caches, move |request| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(match request.stale {
                None => Loaded::value(7),
                Some(stale) => {
                    assert_eq!(*stale, 7);
                    Loaded::not_modified()
                }
            })
        });
        assert_eq!(get(&cache).await, (Some(7), Source::Origin));
        hand.advance(Duration::from_secs(61));
        assert_eq!(get(&cache).await, (Some(7), Source::Origin), "asked again");
        hand.advance(Duration::from_secs(59));
        let source = if far { Source::Far } else { Source::Near };
        assert_eq!(get(&cache).await, (Some(7), source), "a new life");
        of("acme", cache.refresh(&"k".to_owned())).await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 3, "a forced refresh is conditional, too");
    }
}

/// SB10: "not modified" without a stale value is the loader's error, not a value.
#[tokio::test]
async fn not_modified_needs_a_stale_value() {
    let hand = ManualClock::new();
    let cache = with_loader(&caches(&hand, false), |_| Ok(Loaded::not_modified()));
    let error = of("acme", cache.get(&"k".to_owned())).await.unwrap_err();
    assert!(matches!(error, CacheError::Load(LoadError::Failed { .. })), "{error}");
}

/// SB11, SB13, E14: the loader decides how long its answer lives; zero is not cached. The cache's own option is what it
/// was for the others.
#[tokio::test]
async fn the_loader_decides_the_life_of_its_answer() {
    for far in [false, true] {
        let hand = ManualClock::new();
        let caches = caches(&hand, far);
        let cache = with_loader(&caches, |request| {
            Ok(match request.key.as_str() {
                "short" => Loaded::value(1).ttl(Duration::from_secs(5)),
                "none" => Loaded::value(1).ttl(Duration::ZERO),
                _ => Loaded::value(1),
            })
        });
        let loads = |key: &'static str| {
            let cache = cache.clone();
            async move {
                let before = cache.stats().loads;
                of("acme", cache.get(&key.to_owned())).await.unwrap();
                cache.stats().loads - before
            }
        };
        for key in ["short", "none", "usual"] {
            assert_eq!(loads(key).await, 1);
        }
        assert_eq!((loads("short").await, loads("none").await, loads("usual").await), (0, 1, 0));
        hand.advance(Duration::from_secs(6));
        assert_eq!((loads("short").await, loads("usual").await), (1, 0), "far: {far}");
        assert_eq!(cache.policy().ttl, Duration::from_secs(60));
    }
}

/// E14, SB11: what the loader says of life and tags counts for nothing when it fails.
#[tokio::test]
async fn a_failing_loader_decides_nothing() {
    let hand = ManualClock::new();
    let cache = with_loader(&caches(&hand, true), |_| Err(io::Error::other("away")));
    of("acme", cache.get(&"k".to_owned())).await.unwrap_err();
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.size, stats.negative_size), (1, 0, 0));
}

/// E9, E14, SG1: tags that only the loader knows: found in both tiers by whoever reads, invalidated by tag for their
/// tenant only, and changed with the value.
#[tokio::test]
async fn tags_of_the_loader_invalidate() {
    for far in [false, true] {
        let hand = ManualClock::new();
        let caches = caches(&hand, far);
        let cache = with_loader(&caches, |request| {
            let tag = if request.key.starts_with('a') { "as" } else { "others" };
            Ok(Loaded::value(1).tag(tag).tag("all"))
        });
        let read = async |tenant: &str, key: &str| {
            of(tenant, cache.lookup(&key.to_owned())).await.unwrap().source == Source::Origin
        };
        let loaded = async || {
            let mut loaded = Vec::new();
            for (tenant, key) in [("acme", "a1"), ("acme", "b1"), ("globex", "a1")] {
                loaded.push(read(tenant, key).await);
            }
            loaded
        };
        assert_eq!(loaded().await, [true, true, true]);
        assert_eq!(loaded().await, [false, false, false], "far: {far}");
        hand.advance(Duration::from_secs(11));
        assert_eq!(loaded().await, [false, false, false], "promoted from the far tier, far: {far}");
        caches.invalidate_tag(Some(&tenant("acme")), "as").await.unwrap();
        assert_eq!(loaded().await, [true, false, false], "far: {far}");
        hand.advance(Duration::from_secs(11));
        caches.invalidate_tag(Some(&tenant("acme")), "all").await.unwrap();
        assert_eq!(loaded().await, [true, true, false], "far: {far}");
        caches.invalidate_tag(Some(&tenant("acme")), "unknown").await.unwrap();
        assert_eq!(loaded().await, [false, false, false], "far: {far}");
    }
}

/// A cache whose loads read the row, and then wait to be let go on; each is tagged `t`.
struct Slow {
    reading: Arc<Notify>,
    go: Arc<Semaphore>,
    row: Arc<AtomicUsize>,
}

impl Slow {
    fn new() -> Self {
        let row = Arc::new(AtomicUsize::new(1));
        Self { reading: Arc::new(Notify::new()), go: Arc::new(Semaphore::new(0)), row }
    }

    fn cache(&self, caches: &Caches) -> TenantCache<String, u64> {
        let (at, pass, rows) = (Arc::clone(&self.reading), Arc::clone(&self.go), Arc::clone(&self.row));
        let load = move |_: LoadRequest<String, u64>| {
            let (at, pass, rows) = (Arc::clone(&at), Arc::clone(&pass), Arc::clone(&rows));
            async move {
                let row = rows.load(Ordering::SeqCst) as u64;
                at.notify_one();
                pass.acquire().await.unwrap().forget();
                Ok::<_, io::Error>(Loaded::value(row).tag("t"))
            }
        };
        caches.domain("rows").scope(Scope::Tenant).load_with(load).unwrap()
    }
}

fn begin(cache: &TenantCache<String, u64>) -> tokio::task::JoinHandle<Option<u64>> {
    let cache = cache.clone();
    tokio::spawn(async move { plain(of("acme", async { cache.get(&"k".to_owned()).await }).await.unwrap()) })
}

/// SE3, E14, P3: a tag is invalidated while its value is being loaded, and nobody had met the tag before: the old value
/// is answered and stored nowhere.
#[tokio::test]
async fn a_tag_of_the_loader_invalidated_during_the_load_is_noticed() {
    for far in [false, true] {
        let (hand, slow) = (ManualClock::new(), Slow::new());
        let caches = caches(&hand, far);
        let cache = slow.cache(&caches);
        let early = begin(&cache);
        slow.reading.notified().await;
        slow.row.store(2, Ordering::SeqCst);
        caches.invalidate_tag(Some(&tenant("acme")), "t").await.unwrap();
        slow.go.add_permits(1);
        assert_eq!(early.await.unwrap(), Some(1), "it began before");
        slow.go.add_permits(1);
        assert_eq!(begin(&cache).await.unwrap(), Some(2), "far: {far}");
        hand.advance(Duration::from_secs(11));
        assert_eq!(begin(&cache).await.unwrap(), Some(2), "far: {far}");
    }
}

/// SE7, E14, P3: the same by another instance whose message does not arrive: the far tier alone tells.
#[tokio::test]
async fn a_tag_of_the_loader_invalidated_elsewhere_during_the_load_is_noticed() {
    let (hand, slow) = (ManualClock::new(), Slow::new());
    let far = Arc::new(MokaCacheService::builder().clock(hand.clock()).build().unwrap());
    let instance = || Caches::builder().far(far.clone()).clock(hand.clock()).build().unwrap();
    let (here, there) = (instance(), instance());
    let (cache, other) = (slow.cache(&here), slow.cache(&there));
    let early = begin(&cache);
    slow.reading.notified().await;
    slow.row.store(2, Ordering::SeqCst);
    there.invalidate_tag(Some(&tenant("acme")), "t").await.unwrap();
    slow.go.add_permits(2);
    assert_eq!(early.await.unwrap(), Some(1), "it began before");
    assert_eq!(begin(&other).await.unwrap(), Some(2), "nothing old was stored");
}

/// SG2: while the number of an entry's tag must be asked for, nothing invalid is served: the entry is judged with the
/// number as the far tier has it, not with what this process last knew.
#[tokio::test]
async fn an_unknown_tag_is_asked_for_before_its_entry_is_served() {
    let hand = ManualClock::new();
    let far = Arc::new(MokaCacheService::builder().clock(hand.clock()).build().unwrap());
    // Two processes that do not hear of each other: only the far tier tells.
    let instance = || Caches::builder().far(far.clone()).clock(hand.clock()).build().unwrap();
    let (here, there) = (instance(), instance());
    let load = |_: LoadRequest<String, u64>| Ok(Loaded::value(1).tag("t"));
    let (cache, other) = (with_loader(&here, load), with_loader(&there, load));
    assert_eq!(get(&cache).await, (Some(1), Source::Origin));
    there.invalidate_tag(Some(&tenant("acme")), "t").await.unwrap();
    assert_eq!(
        get(&other).await,
        (Some(1), Source::Origin),
        "it never met the tag, and does not serve the entry"
    );
}

/// SG6: a tenant is emptied while an instance is not there: when it comes, it serves nothing of before.
#[tokio::test]
async fn an_instance_that_was_away_serves_nothing_of_an_emptied_tenant() {
    let hand = ManualClock::new();
    let far = Arc::new(MokaCacheService::builder().clock(hand.clock()).build().unwrap());
    let instance = || Caches::builder().far(far.clone()).clock(hand.clock()).build().unwrap();
    let cached = |caches: &Caches| with_loader(caches, |_| Ok(Loaded::value(1)));
    let here = instance();
    let cache = cached(&here);
    for tenant in ["acme", "globex"] {
        of(tenant, cache.get(&"k".to_owned())).await.unwrap();
    }
    here.invalidate_domain(Some(&tenant("acme")), "rows").await.unwrap();
    let later = instance();
    let cache = cached(&later);
    assert_eq!(get(&cache).await, (Some(1), Source::Origin));
    let other = of("globex", cache.lookup(&"k".to_owned())).await.unwrap();
    assert_eq!((plain(other.value), other.source), (Some(1), Source::Far), "the other tenant keeps its own");
}
