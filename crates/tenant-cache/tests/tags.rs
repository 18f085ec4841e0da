//! Tags at their limits, and what they leave in the far tier.

mod support;

use std::sync::Arc;

use cache_core::{CacheError, LoadError, Scope};
use cache_moka::MokaCacheService;
use support::of;
use tenant_cache::{Caches, LoadRequest, Loaded, MAX_TAGS, TenantCache};

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
