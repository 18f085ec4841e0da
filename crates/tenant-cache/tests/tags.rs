//! Tags at their limits, and what they leave in the far tier.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use cache_core::{CacheError, CacheService, LoadError, ManualClock, Scope};
use cache_moka::MokaCacheService;
use support::{Origin, of, plain, versions_with};
use tenant_cache::{Caches, LoadRequest, Loaded, MAX_TAGS, NegativeTier, Source, TenantCache};

/// Tags that can be none, and why.
fn unusable() -> [(String, &'static str); 4] {
    [
        (String::new(), "empty"),
        ("a\nb".to_owned(), "control character"),
        ("x".repeat(513), "513 bytes"),
        (":".repeat(200), "bytes, more than"),
    ]
}

/// As many tags as the key says.
fn counted(caches: &Caches) -> TenantCache<usize, usize> {
    caches
        .domain("counted")
        .scope(Scope::Tenant)
        .tags(|count: &usize| (0..*count).map(|n| format!("g{n}")).collect())
        .load(|count: usize| async move { Ok::<_, std::io::Error>(Some(count)) })
        .unwrap()
}

fn tiered() -> Caches {
    Caches::builder().far(Arc::new(MokaCacheService::builder().build().unwrap())).build().unwrap()
}

/// More tags than an entry can carry are refused, whatever is asked of the key: none is left out in silence.
#[tokio::test]
async fn more_tags_than_fit_are_an_error() {
    for caches in [Caches::in_memory(), tiered()] {
        let cache = counted(&caches);
        of("acme", async {
            for fits in 0..=MAX_TAGS {
                assert_eq!(cache.get(&fits).await.unwrap().as_deref(), Some(&fits));
            }
            let refused = [
                cache.get(&9).await.map(drop),
                cache.fresh(&9).await.map(drop),
                cache.refresh(&9).await.map(drop),
                cache.insert(&9, 9).await,
                cache.lookup_many(&[9, 10]).await.unwrap().remove(1).map(drop),
            ];
            for refused in refused {
                let error = refused.unwrap_err();
                assert!(matches!(error, CacheError::Configuration { .. }), "{error:?}");
                let text = error.to_string();
                assert!(text.contains("`counted`") && text.contains("at most 8"), "{text}");
            }
            cache.invalidate(&9).await.unwrap();
        })
        .await;
        assert_eq!(cache.stats().loads, MAX_TAGS as u64 + 1, "a refused key is not loaded");
    }
}

/// The last tag that fits is one like the first.
#[tokio::test]
async fn every_tag_that_fits_invalidates() {
    let caches = tiered();
    let cache = counted(&caches);
    of("acme", async {
        for n in 0..MAX_TAGS {
            cache.get(&MAX_TAGS).await.unwrap();
            cache.invalidate_tag(&format!("g{n}")).await.unwrap();
            assert!(cache.peek(&MAX_TAGS).unwrap().is_none(), "g{n}");
        }
    })
    .await;
}

/// A loader that names more tags than there is room for beside those of the key fails the load, by kind and name.
#[tokio::test]
async fn more_tags_of_a_loader_than_fit_are_an_error() {
    for caches in [Caches::in_memory(), tiered()] {
        let cache: TenantCache<usize, usize> = caches
            .domain("late")
            .scope(Scope::Tenant)
            .tags(|_| vec!["of-the-key".to_owned()])
            .load_with(|request: LoadRequest<usize, usize>| async move {
                let value = Loaded::value(request.key);
                // Twice the same one counts once.
                let twice = (0..request.key).chain(0..request.key);
                Ok::<_, std::io::Error>(twice.fold(value, |value, n| value.tag(format!("g{n}"))))
            })
            .unwrap();
        of("acme", async {
            assert_eq!(cache.get(&7).await.unwrap().as_deref(), Some(&7));
            let error = cache.get(&8).await.unwrap_err();
            assert!(matches!(error, CacheError::Load(LoadError::Tags { .. })), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("`late`") && text.contains("at most 7"), "{text}");
            assert!(!error.is_transient());
        })
        .await;
        assert_eq!(cache.stats().load_failures, 1);
    }
}

/// Who comes after the invalidation of a tag that only the loader knows joins no load from before it.
#[tokio::test]
async fn a_reader_after_a_late_tag_does_not_join_the_old_load() {
    for caches in [Caches::in_memory(), tiered()] {
        let origin = Origin::gated();
        let loading = origin.clone();
        let cache: TenantCache<String, u64> =
            caches
                .domain("late")
                .scope(Scope::Tenant)
                .load_with(move |request: LoadRequest<String, u64>| {
                    let origin = loading.clone();
                    async move {
                        Ok::<_, std::io::Error>(Loaded::from(origin.load(&request.key).await?).tag("late"))
                    }
                })
                .unwrap();
        let read = || {
            let cache = cache.clone();
            tokio::spawn(async move { of("acme", cache.get(&"k".to_owned())).await })
        };
        origin.commit("k", 1);
        let before = read();
        origin.at_gate(1).await;
        origin.commit("k", 2);
        of("acme", cache.invalidate_tag("late")).await.unwrap();
        let after = read();
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        origin.release(2);
        assert_eq!(plain(before.await.unwrap().unwrap()), Some(1), "it began before");
        assert_eq!(plain(after.await.unwrap().unwrap()), Some(2), "it began after");
    }
}

/// A tag that cannot be one is refused where it is named, without repeating it.
#[tokio::test]
async fn unusable_tags_are_an_error() {
    for caches in [Caches::in_memory(), tiered()] {
        let of_key: TenantCache<usize, u32> = caches
            .domain("of-key")
            .scope(Scope::Tenant)
            .tags(|which: &usize| vec!["fine".to_owned(), unusable()[*which].0.clone()])
            .load(|_| async { Ok::<_, std::io::Error>(Some(1)) })
            .unwrap();
        let of_loader: TenantCache<usize, u32> = caches
            .domain("of-loader")
            .scope(Scope::Tenant)
            .load_with(|request: LoadRequest<usize, u32>| async move {
                Ok::<_, std::io::Error>(Loaded::value(1).tag("fine").tag(unusable()[request.key].0.clone()))
            })
            .unwrap();
        of("acme", async {
            for (which, (tag, reason)) in unusable().into_iter().enumerate() {
                let error = of_key.get(&which).await.unwrap_err();
                assert!(matches!(error, CacheError::Configuration { .. }), "{which}: {error:?}");
                assert!(error.to_string().contains(reason), "{which}: {error}");
                let error = of_loader.get(&which).await.unwrap_err();
                assert!(matches!(error, CacheError::Load(LoadError::Tags { .. })), "{which}: {error:?}");
                let text = error.to_string();
                assert!(text.contains(reason) && (tag.is_empty() || !text.contains(&tag)), "{which}: {text}");
                let error = of_key.invalidate_tag(&tag).await.unwrap_err();
                assert!(matches!(error, CacheError::InvalidKey(_)), "{which}: {error:?}");
            }
        })
        .await;
    }
}

/// A far tier and two instances on it that share no memory.
struct Store {
    hand: ManualClock,
    far: Arc<MokaCacheService>,
}

impl Store {
    fn new() -> Self {
        let hand = ManualClock::new();
        let far = Arc::new(MokaCacheService::builder().clock(hand.clock()).build().unwrap());
        Self { hand, far }
    }

    /// Rows that exist below 1 000, each with a tag of its own and a life that the row says; in a domain whose entries
    /// live five minutes.
    fn rows(&self, negative: NegativeTier) -> (Caches, TenantCache<u64, u64>) {
        let caches = Caches::builder().far(self.far.clone()).clock(self.hand.clock()).build().unwrap();
        let rows = caches
            .domain("rows")
            .scope(Scope::Tenant)
            .jitter(0.0)
            .negative_tier(negative)
            .tags(|key: &u64| vec![format!("of-{key}")])
            .load_with(|request: LoadRequest<u64, u64>| async move {
                Ok::<_, std::io::Error>(match request.key {
                    key @ 0..500 => Loaded::value(key),
                    key @ 500..1_000 => Loaded::value(key).ttl(DAY).tag("late"),
                    _ => Loaded::absent().tag("late-absent"),
                })
            })
            .unwrap();
        (caches, rows)
    }

    /// Whether the tag of a row has a number.
    async fn has_number(&self, tag: &str) -> bool {
        self.far.get_bytes(&format!("gen:g:acme:{tag}")).await.unwrap().is_some()
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn get(rows: &TenantCache<u64, u64>, key: u64) -> (Option<u64>, Source) {
    let found = of("acme", rows.lookup(&key)).await.unwrap();
    (found.value.map(|value| *value), found.source)
}

/// A tag's number lives as long as what carries it, and not much longer.
#[tokio::test]
async fn a_number_lives_little_longer_than_its_entries() {
    for negative in [NegativeTier::Both, NegativeTier::Near] {
        let s = Store::new();
        let (_caches, rows) = s.rows(negative);
        assert_eq!(get(&rows, 1).await, (Some(1), Source::Origin));
        s.hand.advance(5 * MINUTE - Duration::from_secs(1));
        assert!(s.has_number("of-1").await);
        let (_others, elsewhere) = s.rows(negative);
        assert_eq!(get(&elsewhere, 1).await, (Some(1), Source::Far), "no number ended before the entry");
        s.hand.advance(3 * MINUTE);
        assert!(!s.has_number("of-1").await, "{negative:?}: nothing of it is left");
    }
}

/// An entry that is to live longer than the options say takes its tags' numbers along: of the key, and of the load.
#[tokio::test]
async fn a_longer_life_renews_the_numbers() {
    let s = Store::new();
    let (_caches, rows) = s.rows(NegativeTier::Both);
    assert_eq!(get(&rows, 1).await, (Some(1), Source::Origin));
    // A tag that is new costs the first load; see `Loaded::tag`.
    get(&rows, 501).await;
    get(&rows, 501).await;
    s.hand.advance(DAY / 2);
    let (_others, elsewhere) = s.rows(NegativeTier::Both);
    assert_eq!(get(&elsewhere, 501).await, (Some(501), Source::Far));
    // One that is stored later renews what both carry.
    get(&elsewhere, 502).await;
    s.hand.advance(DAY - MINUTE);
    let (_others, elsewhere) = s.rows(NegativeTier::Both);
    assert_eq!(get(&elsewhere, 502).await, (Some(502), Source::Far));
    assert_eq!(get(&elsewhere, 501).await.1, Source::Origin, "its life is over");
    s.hand.advance(2 * DAY);
    for tag in ["of-501", "of-502", "late"] {
        assert!(!s.has_number(tag).await, "{tag}");
    }
}

/// What is inserted has tags whose numbers live as long, too.
#[tokio::test]
async fn what_is_inserted_keeps_its_numbers() {
    for negative in [NegativeTier::Both, NegativeTier::Near] {
        let s = Store::new();
        let (caches, rows) = s.rows(negative);
        of("acme", rows.insert(&5_000, 7)).await.unwrap();
        s.hand.advance(4 * MINUTE);
        of("acme", rows.insert(&5_000, 8)).await.unwrap();
        s.hand.advance(4 * MINUTE);
        let (_others, elsewhere) = s.rows(negative);
        assert_eq!(get(&elsewhere, 5_000).await, (Some(8), Source::Far));
        caches.invalidate_tag(Some(&support::tenant("acme")), "of-5000").await.unwrap();
        let (_others, elsewhere) = s.rows(negative);
        assert_eq!(get(&elsewhere, 5_000).await, (None, Source::Origin), "{negative:?}");
    }
}

/// Keys that anybody can invent leave nothing in the far tier when what does not exist is remembered in memory only.
#[tokio::test]
async fn invented_keys_leave_no_numbers() {
    let s = Store::new();
    let (_caches, rows) = s.rows(NegativeTier::Near);
    for key in 10_000..11_000 {
        assert_eq!(get(&rows, key).await.0, None);
        assert_eq!(get(&rows, key).await, (None, Source::Near));
    }
    assert_eq!(s.far.invalidate_prefix("gen:g:").await.unwrap(), 0);
    // Everything, the domain, the tenant's domain, and the guard of its tags.
    assert!(s.far.invalidate_prefix("gen:").await.unwrap() <= 4);
    assert_eq!(s.far.invalidate_prefix("acme:").await.unwrap(), 0);
}

/// A number that is made after the load does not hide that the tag was invalidated during it.
#[tokio::test]
async fn a_number_made_late_hides_no_invalidation() {
    let s = Store::new();
    let origin = Origin::gated();
    let instance = || {
        let caches = Caches::builder().far(s.far.clone()).clock(s.hand.clock()).build().unwrap();
        let cache = versions_with(&caches, &origin, |domain| {
            domain.negative_tier(NegativeTier::Near).tags(|key: &String| vec![format!("of-{key}")])
        });
        (caches, cache)
    };
    let ((_caches, cache), (others, elsewhere)) = (instance(), instance());
    origin.commit("k", 1);
    let slow = cache.clone();
    let load = tokio::spawn(async move { of("acme", slow.get(&"k".to_owned())).await });
    origin.at_gate(1).await;
    origin.commit("k", 2);
    // The instances do not hear of each other: only the far tier tells.
    others.invalidate_tag(Some(&support::tenant("acme")), "of-k").await.unwrap();
    origin.release(1);
    assert_eq!(plain(load.await.unwrap().unwrap()), Some(1));
    origin.release(1);
    assert_eq!(plain(of("acme", elsewhere.get(&"k".to_owned())).await.unwrap()), Some(2));
    assert_eq!(cache.stats().refused_fills, 1);
}

/// The number of a tag that is lost while its entry lives makes the entry a miss, whoever makes the next number.
#[tokio::test]
async fn a_lost_number_revives_nothing() {
    for negative in [NegativeTier::Both, NegativeTier::Near] {
        let s = Store::new();
        let (_caches, rows) = s.rows(negative);
        get(&rows, 1).await;
        s.far.invalidate("gen:g:acme:of-1").await.unwrap();
        let (_others, elsewhere) = s.rows(negative);
        assert_eq!(get(&elsewhere, 1).await, (Some(1), Source::Origin), "{negative:?}");
        // Who still believes in the lost number stores nothing under it that others would take.
        of("acme", rows.refresh(&1)).await.unwrap();
        let (_others, elsewhere) = s.rows(negative);
        assert_eq!(get(&elsewhere, 1).await.0, Some(1), "{negative:?}");
    }
}
